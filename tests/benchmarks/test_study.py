"""Studies: what is compared and said, and the command end to end on a tiny set."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from fast_train.benchmarks.studies import STUDIES
from fast_train.benchmarks.studies import cli as study_cli
from fast_train.benchmarks.studies.base import Comparison, Options, variant_config
from fast_train.benchmarks.studies.report import Findings, compare, distance
from fast_train.benchmarks.studies.train import DIVERGED, DONE, Run, last_errors
from fast_train.data_prep import cli as prep_cli
from fast_train.pipeline.engine.listener import Listener
from fast_train.pipeline.errors import ConfigError, TrainingDiverged
from fast_train.pipeline.run import session

QUICK = ["--device", "cpu", "--amp", "off", "--steps", "2", "--batch-size", "16"]


def finished(variant, seed, *errors, status=DONE, dtype="float32"):
    history = tuple(
        {"epoch": n + 1, "step": 10 * (n + 1), "train_error": error + 0.1, "test_error": error}
        for n, error in enumerate(errors)
    )
    return Run(
        variant=variant,
        arch=variant,
        option="",
        seed=seed,
        parameters=7,
        dtype=dtype,
        status=status,
        history=history,
    )


def findings(runs, *, batch_size=128, images=50_000, synthetic=False):
    return Findings(
        study=STUDIES["degradation"],
        runs=runs,
        wanted=len(runs),
        data={"source": "cifar10", "synthetic": synthetic, "train_images": images},
        machine={},
        settings={"command": "bench-study degradation", "batch_size": batch_size, "seeds": 1},
    )


@pytest.fixture
def study(prepared_path, tmp_path):
    """Runs the augmentation study's first two variants; returns the exit status."""

    def run(*flags, data=prepared_path, out=tmp_path / "study"):
        arguments = ["augmentation", "--variants", "resnet20-none,resnet20-flip", *QUICK, *flags]
        return study_cli.main(["--data", str(data), "--out", str(out), *arguments])

    return run


@pytest.fixture(scope="module")
def done(prepared_path, tmp_path_factory):
    """The folder of a finished study of both variants with two seeds each; not to be changed."""
    out = tmp_path_factory.mktemp("done") / "study"
    flags = ["augmentation", "--variants", "resnet20-none,resnet20-flip", "--seeds", "2", *QUICK]
    assert study_cli.main(["--data", str(prepared_path), "--out", str(out), *flags]) == 0
    return out


@pytest.fixture
def finished_study(done, tmp_path):
    """A copy of it, where `study` goes on with it."""
    return shutil.copytree(done, tmp_path / "study")


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def trained(folder):
    return [(run["variant"], run["seed"]) for run in report_of(folder)["runs"]]


def contents(folder):
    """Of every file: its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line_error(capsys):
    """What the command itself said on stderr, which is one line."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench-study: error: ")
    return line


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_variant_is_a_valid_training_and_every_name_is_one_of_them(study):
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names)
    for variant in study.variants:
        config = variant_config(variant, Options(data="set"), 3)
        assert (config.model.arch, config.run.seed, config.run.steps) == (variant.arch, 3, 64_000)
        for section, values in variant.settings.items():
            for name, value in values.items():
                assert getattr(getattr(config, section), name) == value
    used = {name for c in study.comparisons for name in (c.first, c.second)}
    used |= {name for plot in study.plots for panel in plot.panels for name in panel.variants}
    assert used | set(study.cpu_variants) <= set(names)


def test_variants_of_a_study_differ():
    for study in STUDIES.values():
        configs = [variant_config(variant, Options(data="set"), 0) for variant in study.variants]
        assert len({json.dumps(config.to_dict()) for config in configs}) == len(configs)


def test_a_length_in_epochs_replaces_the_papers_steps():
    config = variant_config(STUDIES["degradation"].variants[0], Options(data="set", epochs=3), 0)
    assert (config.run.epochs, config.run.steps) == (3, None)


def test_selecting_by_architecture_and_option():
    shortcuts = STUDIES["shortcuts"]
    assert [v.name for v in shortcuts.select(["resnet20"], ["A", "B"])] == ["resnet20-A", "resnet20-B"]
    assert [v.name for v in shortcuts.select(None, ["resnet18-C"])] == ["resnet18-C"]
    with pytest.raises(ConfigError, match="fits both --archs and --variants"):
        shortcuts.select(["resnet20"], ["resnet18-C"])


def test_a_difference_is_claimed_only_where_every_pair_of_seeds_shows_it():
    question = Comparison("plain-20", "plain-56", ("train", "test"))
    clear = [finished("plain-20", s, 0.9, 0.2 + s / 100) for s in (0, 1)]
    clear += [finished("plain-56", s, 0.9, 0.3 + s / 100) for s in (0, 1)]
    assert "10.00 points higher" in compare(clear, question, "test")
    assert "for every pair of seeds (2 and 2 seeds)" in compare(clear, question, "train")
    overlapping = [*clear[:2], finished("plain-56", 0, 0.19), finished("plain-56", 1, 0.9)]
    assert "no difference is shown" in compare(overlapping, question, "test")
    assert "with one seed" in compare([clear[0], clear[2]], question, "test")
    assert compare(clear[:2], question, "test") is None


def test_a_diverged_training_counts_for_nothing():
    runs = [finished("plain-20", 0, 0.5), finished("plain-20", 1, 0.1, status=DIVERGED)]
    assert last_errors(runs, "plain-20", "test") == [0.5]


def test_the_distance_from_the_papers_setting_is_said():
    short = " ".join(distance(findings([finished("plain-20", 0, 0.5)])))
    assert "10 steps of 128 images, 0.0 epochs. The paper trains 64,000 steps of 128, 164 epochs" in short
    assert "ends before the nets converge" in short
    full = finished("plain-20", 0, 0.5)
    full.history[0]["step"] = 64_000
    assert "converge" not in " ".join(distance(findings([full])))


def test_mixed_precision_is_a_distance_from_the_papers_setting():
    assert "Arithmetic" not in " ".join(distance(findings([finished("plain-20", 0, 0.5)])))
    mixed = [finished("plain-20", seed, 0.5, dtype="bfloat16") for seed in (0, 1)]
    assert "convolutions and matrix products in bfloat16." in " ".join(distance(findings(mixed)))
    both = [*mixed, finished("plain-20", 2, 0.5)]
    assert "bfloat16 (2 of 3 trainings) and float32 (1 of 3 trainings)" in " ".join(distance(findings(both)))


def test_a_report_says_what_was_computed_in(study, done, tmp_path):
    assert study("--variants", "resnet20-none", "--amp", "bf16") == 0
    assert [run["dtype"] for run in report_of(tmp_path / "study")["runs"]] == ["bfloat16"]
    text = (tmp_path / "study" / "report.md").read_text()
    assert re.search(r"\| computed in +\| bfloat16 ", text)
    assert "Arithmetic: convolutions and matrix products in" in text
    text = (done / "report.md").read_text()
    assert re.search(r"\| computed in +\| float32 ", text)
    assert "Arithmetic" not in text


def test_a_report_of_a_study(done):
    folder, record = done, report_of(done)
    assert (record["schema"], record["version"]) == ("fast-train.bench-study", 1)
    assert record["complete"]
    assert [(run["variant"], run["seed"]) for run in record["runs"]] == [
        (name, seed) for seed in (0, 1) for name in ("resnet20-none", "resnet20-flip")
    ]
    for run in record["runs"]:
        assert 0 <= run["history"][-1]["test_error"] <= 1
        assert run["history"][-1]["step"] == 2
        # He et al. 2015, table 6: 0.27 million, there with ten classes, here with two: eight rows less of 64 + 1.
        assert run["parameters"] == 269_722 - 8 * 65
    text = (folder / "report.md").read_text()
    assert "How far this is from the paper's setting" in text
    assert "resnet20-flip" in text
    assert (folder / "augmentation-resnet20.png").exists()
    assert not list((folder / "runs").rglob("*.png"))


def test_finished_trainings_are_kept_and_others_refused(study, finished_study, capsys):
    metrics = finished_study / "runs" / "resnet20-flip-seed0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    # A training from before a setting existed had what is its default now.
    config = metrics.with_name("config.json")
    record = json.loads(config.read_text())
    assert record["config"]["augment"].pop("flip_mode") == "random"
    config.write_text(json.dumps(record))
    assert study() == 0
    assert metrics.stat().st_mtime_ns == before
    capsys.readouterr()
    assert study("--steps", "4") == 2
    error = capsys.readouterr().err
    assert "run.steps = 2, this command says 4; give another --out" in error
    assert metrics.stat().st_mtime_ns == before


def test_an_interrupted_study_says_how_to_go_on_and_does(study, tmp_path, capsys, monkeypatch):
    class Stop(Listener):
        def on_epoch_begin(self, epoch, *, already, images_left):
            signal.raise_signal(signal.SIGINT)

    real, calls = session.train, []

    def stop_second(*arguments, listeners, **options):
        calls.append(arguments)
        return real(*arguments, listeners=(*listeners, *([Stop()] if len(calls) == 2 else [])), **options)

    monkeypatch.setattr(session, "train", stop_second)
    assert study() == 130
    assert "go on with: bench-study --data" in capsys.readouterr().err
    record = json.loads((tmp_path / "study" / "report.json").read_text())
    assert not record["complete"]
    assert "Only 1 of 2 trainings are done" in (tmp_path / "study" / "report.md").read_text()
    assert study() == 0
    assert json.loads((tmp_path / "study" / "report.json").read_text())["complete"]


@pytest.fixture
def prepare(tmp_path):
    """Prepares other images at the same place each time it is called; returns the set's folder."""

    def run(seed):
        generator, images, out = np.random.default_rng(seed), tmp_path / f"images-{seed}", tmp_path / "set"
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (images / place).mkdir(parents=True)
            for number in range(16):
                pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(images / place / f"{number}.png")
        assert prep_cli.main(["--dataset", f"folder:{images}", "--out", str(out), "--overwrite"]) == 0
        return out

    return run


def test_finished_trainings_of_data_that_were_replaced_are_refused(study, prepare, tmp_path, capsys):
    data = prepare(0)
    assert study("--variants", "resnet20-none", data=data) == 0
    before = contents(tmp_path / "study")
    prepare(1)
    capsys.readouterr()
    # Also before another variant is trained, which has no folder yet.
    for variant in ("resnet20-none", "resnet20-flip"):
        assert study("--variants", variant, data=data) == 2
        error = one_line_error(capsys)
        assert f"other images than {data}, which differ in " in error
        assert "resnet20-none-seed0" in error
    assert contents(tmp_path / "study") == before
    assert prep_cli.main(["--dataset", f"folder:{tmp_path / 'images-1'}", "--out", str(tmp_path / "others")]) == 0
    capsys.readouterr()
    assert study("--variants", "resnet20-none", data=tmp_path / "others") == 2
    assert f"on other images than {tmp_path / 'others'}, which differ in " in one_line_error(capsys)
    # The same images, wherever they lie.
    assert prep_cli.main(["--dataset", f"folder:{tmp_path / 'images-0'}", "--out", str(tmp_path / "moved")]) == 0
    assert study("--variants", "resnet20-none", data=tmp_path / "moved") == 0


def test_an_unfinished_training_does_not_go_on_with_other_data(study, prepare, tmp_path, capsys):
    data = prepare(0)
    assert study("--variants", "resnet20-none", data=data) == 0
    run = tmp_path / "study" / "runs" / "resnet20-none-seed0"
    # As a training that was killed before its first epoch was recorded.
    (run / "metrics.jsonl").write_text("")
    before = contents(tmp_path / "study")
    prepare(1)
    capsys.readouterr()
    assert study("--variants", "resnet20-none", data=data) == 2
    assert "holds a training on other images" in one_line_error(capsys)
    assert contents(tmp_path / "study") == before


def test_a_damaged_record_of_a_training_is_refused(study, finished_study, capsys):
    (finished_study / "runs" / "resnet20-none-seed0" / "config.json").write_text('{"config": {}}')
    assert study("--variants", "resnet20-none") == 2
    assert "config.json can't be read" in one_line_error(capsys)


def test_a_training_that_was_killed_while_it_wrote_its_figures_goes_on(study, finished_study):
    metrics = finished_study / "runs" / "resnet20-none-seed0" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[: len(whole) // 2])
    assert study("--variants", "resnet20-none") == 0
    assert report_of(finished_study)["complete"]


def test_a_report_keeps_the_finished_trainings_that_are_not_asked_for(study, finished_study):
    folder = finished_study
    both, pictures = trained(folder), {path.name for path in folder.glob("*.png")}
    assert len(both) == 4
    assert study("--variants", "resnet20-flip") == 0
    assert trained(folder) == both
    assert report_of(folder)["complete"]
    assert "![" in (folder / "report.md").read_text()
    assert {path.name for path in folder.glob("*.png")} == pictures
    assert study("--variants", "resnet20-crop") == 0
    assert trained(folder) == [*both[:2], ("resnet20-crop", 0), *both[2:]]


def test_trainings_of_other_settings_are_refused_before_anything_is_trained(study, finished_study, tmp_path, capsys):
    # The variant that comes first has no folder yet.
    for seed in (0, 1):
        shutil.rmtree(finished_study / "runs" / f"resnet20-none-seed{seed}")
    before = contents(finished_study)
    assert study("--variants", "resnet20-none,resnet20-flip", "--steps", "3") == 2
    assert "run.steps = 2, this command says 3; give another --out" in one_line_error(capsys)
    assert contents(tmp_path / "study") == before


def test_the_report_of_another_study_is_kept(study, finished_study, prepared_path, capsys):
    folder = finished_study
    before = contents(folder)
    arguments = ["--data", str(prepared_path), "--out", str(folder), *QUICK, "shortcuts", "--variants", "resnet20-A"]
    capsys.readouterr()
    assert study_cli.main(arguments) == 2
    assert "holds a report of study augmentation; give another --out" in one_line_error(capsys)
    assert contents(folder) == before
    (folder / "report.json").write_text('{"schema": "fast-train.bench-throughput"}')
    assert study() == 2
    assert "is not a report of a study; give another --out" in one_line_error(capsys)


def test_out_that_is_a_file_is_refused(study, tmp_path, capsys):
    (tmp_path / "study").write_text("mine")
    assert study() == 2
    assert "is a file; give a folder as --out" in one_line_error(capsys)
    assert (tmp_path / "study").read_text() == "mine"


def test_a_training_that_does_not_fit_ends_the_study_and_is_named(study, tmp_path, capsys, monkeypatch):
    def train(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")

    monkeypatch.setattr(session, "train", train)
    assert study() == 2
    error = one_line_error(capsys)
    assert "training resnet20-none with seed 0 failed: the GPU is out of memory; give a smaller --batch-size" in error
    assert not (tmp_path / "study" / "report.json").exists()


def test_a_training_that_can_not_be_done_ends_the_study_and_is_named(study, capsys):
    """The set has no files of that loader."""
    assert study("--loader", "ffcv") == 2
    assert "training resnet20-none with seed 0 failed: " in one_line_error(capsys)


def test_a_diverged_training_is_said_and_the_study_goes_on(study, tmp_path, capsys, monkeypatch):
    real = session.train

    def train(*arguments, folder, **options):
        outcome = real(*arguments, folder=folder, **options)
        if folder.name == "resnet20-none-seed0":
            raise TrainingDiverged("the loss became nan")
        return outcome

    monkeypatch.setattr(session, "train", train)
    assert study() == 0
    assert "training resnet20-none with seed 0 diverged: the loss became nan" in capsys.readouterr().err
    assert [run["status"] for run in report_of(tmp_path / "study")["runs"]] == [DIVERGED, DONE]
    assert "resnet20-none, seed 0, diverged" in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["degradatoin"], "did you mean 'degradation'"),
        (["degradation", "--archs", "resnet18", "--variants", "plain-20"], "fits both --archs and --variants"),
        (["degradation", "--archs", "resnet21"], "unknown architecture of study degradation"),
        (["degradation", "--seeds", "0"], "--seeds 0 is too few"),
        (["degradation", "--epochs", "0"], "0 epochs"),
        (["degradation", "--loader", "nowhere"], "unknown loader 'nowhere'"),
        (["degradation", "--epochs", "1", "--steps", "1"], "give one of them"),
        (["degradation", "--data", "nowhere"], "is not a prepared set"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, message, prepared_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study_cli.main(["--data", str(prepared_path), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
