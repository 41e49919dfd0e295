"""Time to accuracy of a recipe, on a tiny set."""

import dataclasses

import pytest

from benchmarks import cli, commands
from benchmarks.result import read_result
from benchmarks.suites import accuracy
from data_prep.display import Display


def test_a_record_recipe_through_the_command(prepared_path, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["--data", str(prepared_path), "--device", "cpu", "--only", "accuracy", "--recipe", "record-94"]
    arguments += ["--runs", "2", "--epochs", "1", "--target-accuracy", "0.1", "--mllog", "--out", str(out)]
    assert cli.main(arguments) == 0
    result = read_result(out)
    assert result.config["optimizer"]["name"] == "muon"
    final, reached = result.suite("accuracy")
    assert final.name == accuracy.FINAL
    assert [run["seed"] for run in final.details["runs"]] == [0, 1]
    assert final.details["epochs"] == 1
    said = capsys.readouterr().out
    assert [f"seed {seed}: {accuracy:.2%}" in said for seed, accuracy in enumerate(final.repeats)] == [True] * 2
    assert reached.name == "seconds to 10.00%"
    assert all(seconds > 0 for seconds in reached.repeats)


@pytest.mark.parametrize(("epochs", "expected"), [(None, [2, 3]), (3, [2, 4, 6])])
def test_the_length_is_the_recipes_unless_epochs_are_given(prepared_path, tmp_path, epochs, expected):
    """A recipe of 3 steps of 32 out of 64 images, which evaluates nothing before its end."""
    recipe = tmp_path / "steps.toml"
    recipe.write_text('[model]\narch = "resnet8"\n[data]\nbatch_size = 32\n[run]\nsteps = 3\neval_every = 9\n')
    flags = cli.build_parser().parse_args(
        ["--data", str(prepared_path), "--device", "cpu", "--recipe", str(recipe), "--runs", "1"]
    )
    bench = commands.build_bench(flags, ["bench-throughput"], Display(), tmp_path)
    bench.settings = dataclasses.replace(bench.settings, epochs=epochs)
    accuracy.run(bench)
    (row,) = bench.result.suite("accuracy")
    (run,) = row.details["runs"]
    assert row.details["epochs"] == len(expected)
    assert [epoch["accuracy"] is not None for epoch in run["epochs"]] == [False] * (len(expected) - 1) + [True]
    steps = (tmp_path / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert [f'"step": {step}' in line for step, line in zip(expected, steps, strict=True)] == [True] * len(expected)
