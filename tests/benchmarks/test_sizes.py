"""What a CPU is asked to do."""

import dataclasses
import os

import pytest

from fast_train.benchmarks.instrument import bench as bench_module
from fast_train.benchmarks.instrument import roofline
from fast_train.benchmarks.instrument.cost import batch_warnings, fit_batch, training_flops
from fast_train.benchmarks.throughput import cli
from fast_train.benchmarks.throughput.compare import read_result
from fast_train.benchmarks.throughput.suites import accuracy, augmentation, ladder
from fast_train.pipeline.config.settings import Config, DataConfig, ModelConfig


def test_operations_of_resnet18():
    """The paper counts 0.56 billion multiply-adds for a forward pass at 32 x 32; two operations each, three passes."""
    assert training_flops(ModelConfig(arch="resnet18")) == pytest.approx(3 * 2 * 0.5556e9, rel=1e-3)


@pytest.mark.parametrize(("arch", "batch"), [("quick-resnet8", 512), ("resnet18", 16)])
def test_only_a_large_network_gets_a_smaller_batch(arch, batch):
    config = Config(model=ModelConfig(arch=arch), data=DataConfig(batch_size=512))
    assert fit_batch(config).data.batch_size == batch


def test_batches_of_a_large_network_are_smaller(open_bench):
    small = open_bench(arch="resnet8")
    assert batch_warnings(small.recipe, small.config) == []
    large = open_bench(arch="resnet50", recipe="fast")
    # Images of 16 x 16 pixels: a quarter of the operations of 32 x 32.
    assert (large.recipe.data.batch_size, large.config.data.batch_size) == (64, 16)
    (warning,) = batch_warnings(large.recipe, large.config)
    assert warning.startswith("steps of recipe fast take 16 images instead of 64: a CPU takes long")


def test_a_machine_is_not_called_busy_for_our_own_trials(open_bench, monkeypatch):
    """The number of threads is found by steps on all cores, for which the load rises."""
    load = [0.0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    monkeypatch.setattr(bench_module, "settle_threads", lambda *_, **options: load.__setitem__(0, 99.0))
    assert open_bench(arch="resnet8").watch.warnings() == []
    load[0] = 99.0
    (warning,) = open_bench(arch="resnet8").watch.warnings()
    assert warning.startswith("the machine was busy before the start: a load of 99.0 on")


@pytest.mark.parametrize(("suite", "steps"), [(ladder, True), (augmentation, False)])
def test_the_report_says_so_where_steps_are_measured(suite, steps, prepared_path, tmp_path, monkeypatch):
    for module in (roofline, suite):
        monkeypatch.setattr(module, "run", lambda bench: None)
    flags = ["--data", str(prepared_path), "--device", "cpu", "--arch", "resnet50", "--recipe", "fast", "--quick"]
    assert cli.main([*flags, "--only", suite.SUITE, "--out", str(tmp_path / "report")]) == 0
    warnings = read_result(tmp_path / "report").warnings
    said = [warning for warning in warnings if "16 images instead of 64" in warning]
    assert [warning.split(" take ")[0] for warning in said] == (
        ["steps of recipe fast", "steps of recipe notes"] if steps else []
    )


@pytest.mark.parametrize(("flags", "trains"), [({}, False), ({"epochs": 1}, True), ({"only": "accuracy"}, True)])
def test_a_long_training_is_left_out_unless_asked_for(open_bench, monkeypatch, flags, trains):
    bench = open_bench(arch="resnet8", **flags)
    monkeypatch.setattr(accuracy, "TRAINING_FLOPS", 1.0)
    accuracy.run(bench)
    assert bool(bench.result.suite("accuracy")) == trains
    assert (
        any("--epochs or --target-accuracy asks for it" in skipped.reason for skipped in bench.result.skipped) != trains
    )


def test_the_last_rung_is_the_recipe_with_all_that_is_set(open_bench):
    """Beside what the rungs above it changed: here, by --quick, nothing is compiled."""
    bench = open_bench(arch="resnet8", quick=True, set=("run.fuse=norm",))
    last = ladder.rungs(bench)[-1].config
    assert (last.run.fuse, last.run.compile, last.run.graph) == ("norm", False, False)
    assert dataclasses.replace(last, run=bench.config.run) == bench.config
