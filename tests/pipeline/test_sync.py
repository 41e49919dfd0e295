"""Inside an epoch the host queues work and never waits for the device."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fast_train.pipeline.config.settings import Config, ModelConfig, RunConfig
from fast_train.pipeline.engine.build import build_augmenter, build_split_loader, build_step, ready_step
from fast_train.pipeline.engine.metrics import Glimpse
from fast_train.pipeline.engine.runtime import resolve_runtime

# What hands a tensor's value to Python, or makes a shape depend on values.
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class _Waits(TorchDispatchMode):
    """Notes the operations that would wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in _WAITING:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _config(prepared_path, **run):
    data = dataclasses.replace(Config().data, path=str(prepared_path), batch_size=24)
    model = ModelConfig(arch="resnet8", num_classes=3, image_size=16)
    optimizer = dataclasses.replace(Config().optimizer, ema_decay=0.9, grad_clip=5.0)
    return dataclasses.replace(Config(), data=data, model=model, optimizer=optimizer, run=RunConfig(**run))


def _epochs(config, prepared, within, **looks):
    """Two epochs of the resident loader as the training loop runs them, each in the context ``within``; the images."""
    runtime = resolve_runtime(config.run)
    with build_split_loader(config, prepared, runtime, train=True) as loader:
        augmenter = build_augmenter(config, prepared, runtime, train=True)
        step = build_step(config, augmenter, runtime)
        ready = ready_step(step, loader.example(), runtime)
        glimpse = Glimpse(step.metrics.sums, **looks)
        with within:
            for epoch in range(2):
                loader.set_epoch(epoch)
                augmenter.set_epoch(epoch)
                for number, batch in enumerate(loader.feed()):
                    step.set_rate(0.01 / (1 + number))
                    ready(batch)
                    if runtime.device.type == "cuda":
                        glimpse.take()
        return step.metrics.read().images


@pytest.mark.parametrize("fuse", ["none", "norm", "conv"])
def test_no_operation_asks_for_a_value(prepared, prepared_path, fuse):
    """On the CPU by the operations' names."""
    waits = _Waits()
    assert _epochs(_config(prepared_path, device="cpu", fuse=fuse), prepared, waits) == 240
    assert waits.found == []
    with waits:
        torch.ones(1).sum().item()
    assert waits.found == ["aten._local_scalar_dense.default"]


class _SyncIsAnError:
    def __enter__(self):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("fuse", ["none", "norm", "conv"])
def test_gpu_nothing_waits_inside_an_epoch(prepared, prepared_path, fuse, amp):
    """Captured, by PyTorch's own check, which raises at the first wait; looking at the sums included."""
    config = _config(prepared_path, device="cuda", fuse=fuse, amp=amp, compile=False)
    assert _epochs(config, prepared, _SyncIsAnError(), every=0.0) == 240
    with pytest.raises(RuntimeError, match="synchroniz"), _SyncIsAnError():
        torch.ones(1, device="cuda").item()
