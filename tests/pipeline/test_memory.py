"""The bytes that a forward pass keeps, what memory is free, and the refusal of a batch that does not fit."""

import ctypes
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from fast_train.common.memory import free_memory
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.config.settings import ModelConfig
from fast_train.pipeline.engine import memory
from fast_train.pipeline.engine.memory import check_memory, saved_bytes_per_image
from fast_train.pipeline.engine.runtime import running
from fast_train.pipeline.engine.trainer import Trainer
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.loaders import build_loader, room
from fast_train.pipeline.models import build_model
from fast_train.pipeline.run.plan import fit_to_data

_AVAILABLE = "MemTotal:  9 kB\nMemAvailable:  2048 kB\n"


def _small_network():
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_what_is_kept_is_each_layers_input_once(amp):
    # The image, the ReLU's result, which is also the pool's input, and the pool's; the loss's float32 [10] and label.
    itemsize = 4 if amp is None else 2
    expected = (3 * 36 + 8 * 36 + 8) * itemsize + 10 * 4 + 8
    assert saved_bytes_per_image(_small_network(), (3, 6, 6), amp) == expected


def test_counting_leaves_the_model_as_it_was():
    model = build_model(ModelConfig(arch="resnet8")).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved_bytes_per_image(model, (3, 32, 32), None)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet8", "resnet50", "speednet8", "quick-resnet8"])
def test_bytes_grow_with_the_area_of_the_images(arch):
    model = build_model(ModelConfig(arch=arch))
    small, large = (saved_bytes_per_image(model, (3, size, size), None) for size in (24, 48))
    assert large == pytest.approx(4 * small, rel=0.15)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(monkeypatch):
    model = build_model(ModelConfig(arch="resnet18"))
    each = saved_bytes_per_image(model, (3, 32, 32), None)
    monkeypatch.setattr(memory, "free_memory", lambda: 4 << 30)
    check_memory(model, (3, 32, 32), (4 << 30) // each, None)
    with pytest.raises(ConfigError, match=r"more than 4\.7 GB.* 4\.3 GB are free; give --batch-size 600$"):
        check_memory(model, (3, 32, 32), 1000, None)
    check_memory(model, (3, 32, 32), 600, None)
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="train a smaller network or on smaller images"):
        check_memory(model, (3, 32, 32), 2, None)


@pytest.mark.parametrize(
    ("selection", "refusal"),
    [
        ({"share": 0.1}, None),
        ({"share": 0.9}, "a step on 100 images takes"),
        ({"share": 0.1, "proxy": "resnet18"}, "a step on 100 images takes"),
    ],
)
def test_a_network_needs_memory_for_its_share_of_a_batch_and_a_proxy_for_all(prepared, monkeypatch, selection, refusal):
    given = {"model": {"arch": "resnet18"}, "data": {"batch_size": 100}, "selection": selection}
    config = fit_to_data(resolve("paper", {**given, "run": {"device": "cpu"}}), prepared)
    each = saved_bytes_per_image(build_model(config.model), (3, 16, 16), None)
    monkeypatch.setattr(memory, "free_memory", lambda: 80 * each)
    refused = pytest.raises(ConfigError, match=refusal) if refusal else nullcontext()
    with running(config.run) as runtime, Trainer(config, prepared, runtime) as trainer, refused:
        trainer.check_memory()


@pytest.mark.parametrize(
    ("meminfo", "container", "free"),
    [
        (_AVAILABLE, {}, 2 << 20),
        (_AVAILABLE, {"max": "max", "current": "1000"}, 2 << 20),
        (_AVAILABLE, {"max": str(1 << 20), "current": "1000"}, (1 << 20) - 1000),
        (_AVAILABLE, {"max": str(1 << 20), "current": "1000", "stat": "anon 600\ninactive_file 300"}, (1 << 20) - 700),
        (_AVAILABLE, {"max": str(1 << 20), "current": "1000", "stat": "anon 600"}, (1 << 20) - 1000),
        (_AVAILABLE, {"max": str(1 << 20), "current": "200", "stat": "inactive_file 300"}, 1 << 20),
        (_AVAILABLE, {"max": "1000", "current": "1200"}, 0),
        (_AVAILABLE, {"max": str(1 << 30), "current": "1000"}, 2 << 20),
        ("MemTotal:  9 kB\n", {"max": "1000", "current": "1000"}, None),
        (None, {}, None),
    ],
)
def test_free_memory_is_what_linux_or_the_container_has_left(tmp_path, meminfo, container, free):
    (tmp_path / "proc").mkdir()
    if meminfo is not None:
        (tmp_path / "proc" / "meminfo").write_text(meminfo)
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, text in container.items():
        (group / f"memory.{name}").write_text(text + "\n")
    assert free_memory(tmp_path) == free


def test_a_split_fits_into_what_this_process_has_freed(monkeypatch):
    """The driver counts memory that torch keeps for its next tensors as used: a second run of a process has it."""
    kept = [3 << 30]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((4 << 30) - sum(kept), 4 << 30))
    assert room.choose(2 << 30, "the split", torch.device("cuda"), "auto") == "device"
    assert not kept


@pytest.mark.parametrize(
    ("size", "memory", "host", "place"),
    [
        (2, "auto", 0, "device"),
        (3, "auto", 8, "host"),
        (3, "auto", None, "host"),
        (3, "auto", 1, "device"),
        (3, "device", 8, "device"),
        (1, "host", 8, "host"),
        (5, "auto", 4, "cuda has 4.3 GB free and the computer has 4.3 GB free; use --loader torch"),
        (5, "device", 8, "cuda has 4.3 GB free; use --loader torch"),
        (5, "host", 4, "the split takes 5.4 GB, the computer has 4.3 GB free; use --loader torch"),
    ],
)
def test_where_a_split_has_room(size, memory, host, place, monkeypatch):
    """GB that it takes, and that the computer has free; the GPU has 4."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 4 << 30))
    monkeypatch.setattr(room, "free_memory", lambda: None if host is None else host << 30)
    arguments = size << 30, "the split", torch.device("cuda"), memory
    if place in ("device", "host"):
        assert room.choose(*arguments) == place
    else:
        with pytest.raises(ValueError, match=re.escape(place)):
            room.choose(*arguments)


def test_without_a_gpu_the_computer_is_to_have_room(prepared, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    with pytest.raises(
        ValueError, match=r"split 'train' of .* takes 0\.0 GB, and 0\.0 GB are free; use --loader torch"
    ):
        build_loader("resident", prepared, "train", batch_size=8)


def test_host_memory_is_page_locked_for_as_long_as_the_device_may_read_it(monkeypatch):
    """With a stand-in for CUDA: by which calls, and what torch is told of the memory."""
    locked = {}

    class Runtime:
        cudaHostRegister = staticmethod(lambda address, size, flags: locked.update({address: size}) or 0)
        cudaHostUnregister = staticmethod(lambda address: 0 if locked.pop(address) else 1)

    def as_tensor(memory, device):
        told = memory.__cuda_array_interface__
        address, readonly = told["data"]
        assert (told["typestr"], readonly, locked[address]) == ("|u1", False, *told["shape"])
        tensor = torch.from_numpy(np.frombuffer((ctypes.c_uint8 * locked[address]).from_address(address), np.uint8))
        tensor.made_from = memory
        return tensor

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "check_error", lambda status: None)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    host = torch.arange(100, dtype=torch.uint8)
    there = room.on_device(host, torch.device("cuda"))
    assert locked == {host.data_ptr(): 100}
    assert torch.equal(there, host)
    del there
    assert not locked


def test_the_resident_loader_asks_for_room_before_it_copies(prepared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 4 << 30))
    with pytest.raises(ValueError, match=r"split 'train' of .* takes 0\.0 GB, cuda has 0\.0 GB free"):
        build_loader("resident", prepared, "train", batch_size=8, device="cuda", resident_memory="device")
