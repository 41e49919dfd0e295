import dataclasses
import json

import pytest

from fast_train.kernels.spec import AugmentSpec
from fast_train.pipeline.config.recipe import (
    check_overruled,
    merge,
    parse_value,
    read_recipe,
    recipe_names,
    resolve,
)
from fast_train.pipeline.config.settings import (
    Config,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SelectionConfig,
    differences,
)
from fast_train.pipeline.errors import ConfigError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_survives_json(name):
    config = resolve(name, {})
    assert config.recipe == name
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_notes_and_the_paper_are_what_they_say():
    notes = resolve("notes", {})
    assert (notes.optimizer.lr, notes.optimizer.momentum, notes.optimizer.weight_decay) == (0.1, 0.9, 5e-4)
    assert (notes.data.batch_size, notes.data.normalise, notes.data.loader) == (128, "half", "torch")
    assert (notes.schedule.name, notes.schedule.threshold, notes.schedule.patience) == ("plateau", 0.1, 3)
    assert notes.augment == AugmentSpec(flip=True)
    assert notes.run.epochs == 50

    paper = resolve("paper", {})
    assert (paper.run.steps, paper.data.batch_size, paper.optimizer.weight_decay) == (64_000, 128, 1e-4)
    assert [m * 64_000 for m in paper.schedule.milestones] == [32_000, 48_000]
    assert paper.augment == AugmentSpec(pad=4, flip=True)


def test_the_records_step_as_what_they_follow():
    """The steps of the published rates, which are for the sum of a batch's losses: rate * gradient of the mean."""
    small, large = resolve("record-94", {}), resolve("record-96", {})
    assert small.run.epochs * 50_000 // small.data.batch_size == 200
    assert small.optimizer.bias_lr == 0.053 * 2000
    assert small.optimizer.head_lr == pytest.approx(0.67 * 2000 * (9 / 256) ** 2, rel=1e-3)
    assert small.optimizer.lr * small.optimizer.weight_decay == pytest.approx(2e-6 * 2000)
    nesterov = 1 + 1 / (1 - 0.85)
    assert large.optimizer.lr == pytest.approx(9 / nesterov, rel=1e-4)
    assert large.optimizer.bias_lr == pytest.approx(64 * 9 / nesterov, rel=1e-3)
    assert large.optimizer.lr * large.optimizer.weight_decay == pytest.approx(0.012 / nesterov, rel=1e-3)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith(("record-", "resnet18-"))])
def test_timed_recipes_evaluate_only_at_the_end(name):
    config = resolve(name, {})
    assert config.run.eval_every >= config.run.epochs
    assert config.run.steps is None


def test_fast_is_the_training_whose_accuracy_is_documented():
    """Of eight epochs of resnet18-94, evaluated without test-time augmentation."""
    changed = differences(resolve("resnet18-94", {"run": {"epochs": 8}}), resolve("fast", {}))
    assert {name for _, name, _, _ in changed} == {"eval_every", "tta"}


def test_two_averages_are_refused():
    with pytest.raises(ConfigError, match="leave one of them out"):
        OptimizerConfig(ema_decay=0.9, lookahead=5)


def test_a_flag_wins_over_the_recipe():
    config = resolve("paper", {"run": {"epochs": 3}, "optimizer": {"lr": 1}})
    assert config.run.steps is None
    assert config.run.epochs == 3
    assert config.optimizer.lr == 1.0
    assert config.optimizer.weight_decay == 1e-4


def test_a_recipe_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\narch = "resnet20"\n[run]\nepochs = 7\n')
    assert resolve(str(path), {}).run.epochs == 7


@pytest.mark.parametrize(("recipe", "message"), [
    ("fsat", "did you mean 'fast'"), ("missing.toml", "no recipe file"),
])  # fmt: skip
def test_unknown_recipe(recipe, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe)


def test_a_recipe_may_begin_with_a_byte_order_mark_and_end_its_lines_as_windows_does(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\r\nepochs = 7\r\n")
    assert resolve(str(path), {}).run.epochs == 7


@pytest.mark.parametrize(("text", "value"), [
    (".1", 0.1), ("1.", 1.0), ("+.5", 0.5), ("1e-4", 1e-4), ("True", True), ("true", True), ("[.5, .75]", [0.5, 0.75]),
    ("None", None), ("none", "none"), ("resnet18", "resnet18"), ("'none'", "none"), ("a b", "a b"), ("~/x", "~/x"),
])  # fmt: skip
def test_values_are_spelt_as_toml_or_python_does(text, value):
    assert (parse_value(text), type(parse_value(text))) == (value, type(value))


def test_none_leaves_open_what_a_recipe_sets(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[run]\nsteps = 5\ncompile = "none"\ntta = "none"\n[optimizer]\ngrad_clip = 1.0\n')
    config = resolve(str(path), {"run": {"steps": "none"}, "optimizer": {"grad_clip": None}})
    assert (config.run.steps, config.run.compile, config.optimizer.grad_clip) == (None, None, None)
    assert config.run.tta == "none"
    check_overruled({"run": {"epochs": 3, "steps": "none"}})


@pytest.mark.parametrize(("text", "message"), [
    ("[run\n", "no valid TOML"),
    ("[run]\nepoch = 3\n", "did you mean 'epochs'"),
    ("[runs]\nepochs = 3\n", "did you mean 'run'"),
    ('[run]\nepochs = "three"\n', r"run.epochs is 'three'; it must be a whole number"),
    ("[run]\ndeterministic = 1\n", "must be true or false"),
    ("[model]\nshortcut = 3\n", "must be a text or none"),
    ("run = 3\n", "must be a table"),
    ("[augment]\npad = 12\n", "pad 12 is out of range"),
])  # fmt: skip
def test_a_bad_recipe_is_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        resolve(str(path), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("section", "values"), [
    (DataConfig, {"batch_size": 0}), (DataConfig, {"workers": -1}), (DataConfig, {"normalise": "unit"}),
    (OptimizerConfig, {"lr": 0.0}), (OptimizerConfig, {"lr": float("nan")}), (OptimizerConfig, {"momentum": 1.0}),
    (OptimizerConfig, {"momentum": 0.0}), (OptimizerConfig, {"weight_decay": -1.0}),
    (OptimizerConfig, {"label_smoothing": 1.0}), (OptimizerConfig, {"grad_clip": 0.0}),
    (OptimizerConfig, {"ema_decay": 1.0}), (OptimizerConfig, {"name": "moun"}), (OptimizerConfig, {"bias_lr": 0.0}),
    (OptimizerConfig, {"head_lr": -1.0}), (OptimizerConfig, {"whiten_lr": float("inf")}),
    (OptimizerConfig, {"whiten_epochs": 0}), (OptimizerConfig, {"muon_momentum": 1.0}),
    (OptimizerConfig, {"muon_iterations": 0}), (OptimizerConfig, {"lookahead": 0}),
    (OptimizerConfig, {"lookahead_decay": 1.0}), (ScheduleConfig, {"start": 1.5}),
    (ScheduleConfig, {"name": "steps"}), (ScheduleConfig, {"warmup": 1.0}),
    (ScheduleConfig, {"milestones": (0.5, 0.25)}), (ScheduleConfig, {"milestones": (1.5,)}),
    (RunConfig, {"epochs": 0}), (RunConfig, {"steps": 0}), (RunConfig, {"seed": -1}), (RunConfig, {"amp": "int8"}),
    (RunConfig, {"target_accuracy": 94.0}), (RunConfig, {"tta": "crop"}), (RunConfig, {"tta_share": 1.5}),
    (SelectionConfig, {"share": 0.0}), (SelectionConfig, {"share": 1.5}), (SelectionConfig, {"proxy": "small-resnet"}),
])  # fmt: skip
def test_values_out_of_range(section, values):
    with pytest.raises(ValueError, match=r"must|give|choose|needs|did you mean") as error:
        section(**values)
    assert "\n" not in str(error.value)


def test_merge_keeps_what_the_second_does_not_name():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}


def test_every_section_is_frozen():
    config = Config()
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)
