"""Time to accuracy of a recipe, on a tiny set."""

import dataclasses
import math

import pytest
import torch

from fast_train.benchmarks.throughput import cli
from fast_train.benchmarks.throughput.compare import read_result
from fast_train.benchmarks.throughput.records import AccuracyDetails
from fast_train.benchmarks.throughput.suites import accuracy
from fast_train.pipeline.engine.trainer import Trainer

# 3 steps of 32 out of 64 images; nothing is evaluated before the end.
RECIPE = '[model]\narch = "resnet8"\n[data]\nbatch_size = 32\n[run]\nsteps = 3\neval_every = 9\n'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "steps.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def bench_with(open_bench, recipe, tmp_path):
    """What the suite is given, by the recipe, with changed settings."""

    def build(*, epochs=1, **flags):
        scratch = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        bench = open_bench(scratch, recipe=str(recipe), **flags)
        # None for the recipe's, which no flag says on a CPU.
        bench.settings = dataclasses.replace(bench.settings, epochs=epochs)
        return bench

    return build


@pytest.fixture
def diverging(monkeypatch):
    """Makes the weights of given seeds infinite before their training: the loss is then no finite number."""
    seeds, real = set(), Trainer.fit

    def fit(self, *arguments, **options):
        if self.config.run.seed in seeds:
            with torch.no_grad():
                next(self.step.model.parameters()).fill_(math.inf)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "fit", fit)
    return seeds


def test_a_record_recipe_through_the_command(prepared_path, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--only", "accuracy", "--recipe", "record-94"]
    arguments += ["--runs", "2", "--epochs", "1", "--target-accuracy", "0.1", "--out", str(out)]
    assert cli.main([*arguments, "--set", "optimizer.label_smoothing=0.09", "--set", "run.tta_share=0.25"]) == 0
    result = read_result(out)
    assert result.config["optimizer"]["name"] == "muon"
    assert (result.config["optimizer"]["label_smoothing"], result.config["run"]["tta_share"]) == (0.09, 0.25)
    final, ended, reached = result.suite("accuracy")
    assert final.name == accuracy.FINAL
    assert [run.seed for run in final.details.runs] == [0, 1]
    assert (final.details.epochs, final.details.batch_size) == (1, 64)
    said = capsys.readouterr().out
    assert [f"seed {seed}: {accuracy:.2%}" in said for seed, accuracy in enumerate(final.repeats)] == [True] * 2
    assert (ended.name, reached.name) == ("seconds to the end", "seconds to 10.00%")
    assert all(seconds > 0 for seconds in reached.repeats)


@pytest.mark.parametrize(("epochs", "expected"), [(None, [2, 3]), (3, [2, 4, 6])])
def test_the_length_is_the_recipes_unless_epochs_are_given(bench_with, epochs, expected):
    bench = bench_with(runs=1, epochs=epochs)
    accuracy.run(bench)
    (row,) = bench.result.about(AccuracyDetails)
    (run,) = row.details.runs
    assert row.details.epochs == len(expected)
    assert [epoch.accuracy is not None for epoch in run.epochs] == [False] * (len(expected) - 1) + [True]
    steps = (bench.scratch / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert [f'"step": {step}' in line for step, line in zip(expected, steps, strict=True)] == [True] * len(expected)


def test_without_a_target_the_seconds_to_the_end_are_measured(bench_with):
    bench = bench_with(runs=2)
    # As where a CPU takes long over a step, which is then measured on fewer images than the trainings take.
    bench.config = dataclasses.replace(bench.config, data=dataclasses.replace(bench.config.data, batch_size=16))
    accuracy.run(bench)
    final, ended = bench.result.suite("accuracy")
    assert final.details.batch_size == 32
    assert (ended.name, ended.unit, ended.better, ended.statistic) == ("seconds to the end", "s", "lower", "mean")
    assert list(ended.repeats) == [run.epochs[-1].seconds for run in final.details.runs]
    assert ended.interval[0] <= ended.value <= ended.interval[1]
    assert bench.impossible == bench.result.warnings == []


def test_a_seed_that_diverged_did_not_reach_the_target(bench_with, diverging):
    clean = bench_with(runs=3, target_accuracy=0.01)
    accuracy.run(clean)
    diverging.add(1)
    bench = bench_with(runs=3, target_accuracy=0.01)
    accuracy.run(bench)
    final, ended = bench.result.suite("accuracy")
    assert (final.name, ended.name) == (accuracy.FINAL, accuracy.ENDED)
    assert [run.seed for run in final.details.runs] == [0, 2]
    assert [lost.seed for lost in final.details.diverged] == [1]
    assert final.details.seeds == 3
    # The seeds after it are trained as they would be without it.
    assert final.repeats == clean.result.suite("accuracy")[0].repeats[::2]
    reasons = {skipped.name: skipped.reason for skipped in bench.result.skipped}
    assert reasons["seconds to 1.00%"] == "not reached by seed 1: diverged"
    assert "the loss became nan" in reasons["seed 1"]
    (warning,) = bench.result.warnings
    assert "1 of 3 trainings diverged (seed 1); the figures are of 2 of 3 seeds" in warning
    assert bench.impossible == [warning]


def test_a_report_of_diverged_seeds_is_written_and_the_command_fails(prepared_path, recipe, tmp_path, diverging):
    diverging |= {0, 1}
    out = tmp_path / "report"
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--only", "accuracy", "--recipe", str(recipe)]
    arguments += ["--runs", "2", "--target-accuracy", "0.01", "--out", str(out)]
    assert cli.main(arguments) == 1
    result = read_result(out)
    assert result.rows == []
    assert "not reached by seed 0: diverged, seed 1: diverged" in {skipped.reason for skipped in result.skipped}
    assert "2 of 2 trainings diverged (seed 0, 1); there are no figures" in (out / "report.md").read_text()
