"""Which convolutions are compared, that each way computes the same, and that a wrong one is found."""

import json

import pytest
import torch

from fast_train.benchmarks.lab import layers as lab_layers
from fast_train.benchmarks.lab.convolutions import main
from fast_train.benchmarks.lab.layers import CUDNN, Layer, Work, check, layers, tiles


def test_the_layers_of_resnet18():
    """Three plain convolutions and one of stride 2 a stage, but four plain ones in the first; no stem, no shortcut."""
    found = layers("resnet18")
    assert sum(found.values()) == 16
    assert found[Layer(64, 64, 3, 1, 32)] == 4
    assert found[Layer(64, 128, 3, 2, 32)] == 1
    assert found[Layer(512, 512, 3, 1, 4)] == 3
    assert Layer(64, 128, 3, 2, 32).describe() == "64 to 128 channels, 3x3, stride 2 on 32x32"


@pytest.mark.interpreter
@pytest.mark.parametrize("layer", [Layer(16, 24, 3, 1, 4), Layer(24, 16, 1, 1, 4), Layer(16, 32, 3, 2, 4)])
def test_a_tile_computes_what_cudnn_does(layer):
    work = Work(layer, 2, torch.device("cpu"), torch.bfloat16)
    for gradient in work.gradients:
        assert gradient.is_contiguous(memory_format=torch.channels_last), "ours would be timed with a copy of it"
    (first, _), (_, chosen), *others = tiles(layer).items()
    assert first == CUDNN
    assert len(others) > 1
    for run in (work.forward, work.both):
        expected = run(None)
        check(run(chosen), expected)
    with pytest.raises(RuntimeError, match=r"differs from cuDNN's by 100.0%"):
        check([2 * value for value in expected], expected)


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
    monkeypatch.setattr(lab_layers, "records_of", measure)
    assert main(["--arch", "resnet8"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert "  not measured: CUDA out of memory. Tried to allocate" in lines
    assert [tuple(record["layer"].values()) for record in json.loads(last)] == others


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
    layer, count = next(iter(layers("resnet8").items()))
    monkeypatch.setattr(lab_layers, "layers", lambda arch: {layer: count})
    assert main(["--arch", "resnet8", "--batch-size", "64"]) == 0
    records = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {tuple(r["layer"].values()) for r in records} == {layer}
    assert {r["name"] for r in records if r["direction"] == "forward"} == set(tiles(layer))
    assert all(r["images_per_second"] > 0 for r in records if r["name"] == CUDNN)
