"""Which convolutions are compared, that each way computes the same, and that a wrong one is found."""

import json

import pytest
import torch
from cudnn_plans import PlanInPyTorch

from fast_train.benchmarks.lab import layers as lab_layers
from fast_train.benchmarks.lab.convolutions import main
from fast_train.benchmarks.lab.layers import BOTH, CUDNN, GRAPHS, Layer, Work, check, layers, saved, ways
from fast_train.kernels import convolution_cudnn, convolution_tma


def test_the_layers_of_resnet18():
    """Three plain convolutions and one of stride 2 a stage, but four plain ones in the first; no stem, no shortcut.
    A residual comes before the first one of a block, but not behind the stem."""
    found = layers("resnet18")
    assert sum(found.values()) == 16
    inside, begins = {"residual": False, "shared": False}, {"residual": True, "shared": True}
    assert found[Layer(64, 64, 3, 1, 32, **inside)] == 2
    assert found[Layer(64, 64, 3, 1, 32, **begins)] == 1
    assert found[Layer(64, 64, 3, 1, 32, residual=False)] == 1
    assert found[Layer(64, 128, 3, 2, 32, **begins)] == 1
    assert found[Layer(512, 512, 3, 1, 4, **inside)] == 2
    assert not any(layer.shared for layer in layers("plain-18"))
    described = "64 to 128 channels, 3x3 on 32x32, stride 2, after a residual, beside a shortcut"
    assert Layer(64, 128, 3, 2, 32).describe() == described


@pytest.mark.interpreter
@pytest.mark.parametrize("layer", [
    Layer(16, 24, 3, 1, 4), Layer(24, 16, 1, 1, 4, residual=False), Layer(16, 32, 3, 2, 4, False, False),
])  # fmt: skip
def test_a_tile_computes_what_cudnn_does(layer):
    work = Work(layer, 2, torch.device("cpu"), torch.bfloat16)
    for gradient in work.gradients:
        assert gradient.is_contiguous(memory_format=torch.channels_last), "ours would be timed with a copy of it"
    (first, plain), (_, chosen), *others = ways(layer).items()
    assert first == CUDNN
    assert len(others) > 1
    for run in (work.forward, work.both):
        expected = run(plain)
        check(run(chosen), expected)
    with pytest.raises(RuntimeError, match=r"differs from cuDNN's by 100.0%"):
        check([2 * value for value in expected], expected)


@pytest.mark.interpreter
def test_graphs_of_cudnn_are_tried_where_they_can_be(monkeypatch):
    layer = Layer(64, 64, 3, 1, 4, residual=False)
    assert GRAPHS not in ways(layer)
    monkeypatch.setattr(convolution_cudnn, "why_not", lambda *_: None)
    monkeypatch.setattr(convolution_cudnn, "plan_of", PlanInPyTorch)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert GRAPHS not in ways(layer._replace(depth=32))
    work, tried = Work(layer, 2, torch.device("cpu"), torch.bfloat16), ways(layer)
    for run in (work.forward, work.both):
        check(run(tried[GRAPHS]), run(tried[CUDNN]))


@pytest.mark.interpreter
def test_tiles_by_tma_are_tried_where_they_can_be(monkeypatch):
    layer = Layer(64, 64, 3, 1, 16, residual=False)
    assert not any("TMA" in name for name in ways(layer))
    monkeypatch.setattr(convolution_tma, "why_not", lambda _: None)
    assert not any("TMA" in name for name in ways(layer._replace(stride=2)))
    work, tried = Work(layer, 2, torch.device("cpu"), torch.bfloat16), ways(layer)
    check(work.both(tried["TMA, depth 64 / 1"]), work.both(tried[CUDNN]))


def test_what_graphs_save_in_a_step():
    """Twice 2 ms and once -1 ms a batch of 10; a narrow layer has no graphs. Nothing is said of a part."""
    faster, slower, narrow = Layer(64, 64, 3, 1, 8), Layer(64, 64, 3, 1, 16), Layer(16, 16, 3, 1, 8)
    seconds = {(faster, CUDNN): 5e-3, (faster, GRAPHS): 3e-3, (slower, CUDNN): 1e-3, (slower, GRAPHS): 2e-3,
               (narrow, CUDNN): 1e-3}  # fmt: skip
    records = [
        {"layer": layer._asdict(), "direction": BOTH, "name": name, "images_per_second": 10 / value}
        for (layer, name), value in seconds.items()
    ]
    found = {faster: 2, slower: 1, narrow: 5}
    assert saved(records, found, 10) == pytest.approx(3.0)
    del records[1]["images_per_second"]
    records[1]["failed"] = "for a reason"
    assert saved(records, found, 10) is None


def test_a_cpu_is_told_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "CUDA device" in capsys.readouterr().err
    assert main(["--arch", "resnet19"]) == 2
    assert "unknown architecture 'resnet19'" in capsys.readouterr().err


def test_a_layer_that_does_not_fit_costs_no_other_its_figures(capsys, monkeypatch):
    first, *others = layers("resnet8")

    def measure(layer, batch):
        if layer == first:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        yield {"layer": layer._asdict(), "direction": "forward", "name": CUDNN, "images_per_second": 1.0 * batch,
               "spread": 0.0, "over_cudnn": 1.0, "over_cudnn_interval": (1.0, 1.0)}  # fmt: skip

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(lab_layers, "records_of", measure)
    monkeypatch.setattr(convolution_cudnn, "why_not", lambda *_: "it needs something")
    assert main(["--arch", "resnet8"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert "  not measured: CUDA out of memory. Tried to allocate" in lines
    assert [tuple(record["layer"].values()) for record in json.loads(last)] == others
    assert "cuDNN's graphs: T not measured: it needs something" in lines
    assert "no tiles by TMA: loads by TMA need a GPU of compute capability 9.0" in lines


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", interrupt)
    assert main(["--arch", "resnet8"]) == 130
    assert capsys.readouterr().err == "python -m fast_train.benchmarks.lab.convolutions: interrupted\n"


@pytest.mark.gpu
def test_gpu_measures_each_way_to_compute_a_layer(monkeypatch, capsys):
    """One layer: each of its tiles takes seconds to compile."""
    layer, count = next(iter(layers("resnet18").items()))
    monkeypatch.setattr(lab_layers, "layers", lambda arch: {layer: count})
    assert main(["--batch-size", "64"]) == 0
    records = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {tuple(r["layer"].values()) for r in records} == {layer}
    assert {r["name"] for r in records if r["direction"] == "forward"} == set(ways(layer))
    assert all(r["images_per_second"] > 0 for r in records if r["name"] == CUDNN)
