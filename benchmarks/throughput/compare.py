"""The report's file; two reports side by side: the ratio of each row that both have, and what got worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_train.benchmarks.instrument.records import Details, ReportError
from fast_train.benchmarks.instrument.result import Format, Result, Row
from fast_train.benchmarks.instrument.statistics import bootstrap_ratio
from fast_train.benchmarks.present.tables import number
from fast_train.benchmarks.throughput.records import AccuracyDetails
from fast_train.benchmarks.throughput.suites import SUITES
from fast_train.common.text import one_line, printable, show
from fast_train.pipeline.config.settings import OF_THE_DATA, Config

REPORT = "report.json"
FORMAT = Format(
    schema="fast-train.bench-throughput",
    version=1,
    details={name: suite.details for name, suite in SUITES.items()},
    renamed={"notes' DataLoader": "baseline DataLoader", "the notes' step": "the baseline's step"},
)
_MAX_LOSS = 0.1
# Settings that decide how fast a step is, whatever the recipe.
_SPEED = {
    "data.batch_size",
    "data.loader",
    "crop.size",
    "run.amp",
    "run.compile",
    "run.compile_mode",
    "run.fuse",
    "run.tf32",
    "run.channels_last",
    "run.graph",
    "run.deterministic",
}
# What other notes say.
_SAID = {"data.path", "run.device"}
# Settings of the measurement that need no note: they decide which rows there are, or the trainings' notes name them.
_NOT_OF_ROWS = {
    "command",
    "started_at",
    "scaling",
    "batch_sizes",
    "worker_counts",
    "accuracy_asked",
    "target_accuracy",
    "epochs",
}


@dataclass(frozen=True)
class Change:
    """speed: how many times as good as before, above 1 for better, whichever way the unit goes. interval: of it, or
    None where a report has but one repeat."""

    before: Row[Details]
    after: Row[Details]
    speed: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """changes: of the rows that both reports have. gone, added: names of the others. notes: what makes the two hard to
    compare."""

    changes: list[Change]
    gone: list[str]
    added: list[str]
    notes: list[str]

    def losses(self, max_loss: float) -> list[Change]:
        """The rows that lost more than a part ``max_loss``: 0.1 where a row is at 90 % of what it was."""
        return [change for change in self.changes if 1 - change.speed > max_loss]


def compare_reports(before: Path, after: Path, max_loss: float | None) -> int:
    """Print the ratios of two reports; 1 where a row lost more than ``max_loss``, a fraction, by default 0.1."""
    limit = _MAX_LOSS if max_loss is None else max_loss
    if not 0 <= limit < 1:
        raise ValueError(f"--max-loss {limit} is not a fraction in [0, 1)")
    comparison = compare(read_result(before), read_result(after))
    print(printable("\n".join(describe(comparison, limit))))
    return 1 if comparison.losses(limit) else 0


def read_result(path: Path) -> Result:
    """Read a report.json, or the one in a folder; ReportError, naming it, for anything out of order."""
    path = path / REPORT if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{one_line(error)}; give a {REPORT}, or the folder that holds one") from error
    try:
        return Result.from_json(text, FORMAT)
    except ValueError as error:
        raise ReportError(
            f"{show(path)} is not a usable report of bench-throughput: {one_line(error)}; measure anew"
        ) from error


def compare(before: Result, after: Result) -> Comparison:
    """ReportError where the reports are of different networks, or have no row in common."""
    _check_network(before, after)
    old, new = ({(row.suite, row.name): row for row in result.rows} for result in (before, after))
    changes = [_change(old[key], new[key]) for key in old if key in new]
    if not changes:
        raise ReportError("the reports have no row in common; compare reports of the same suites and settings")
    return Comparison(
        changes=changes,
        gone=[f"{suite}: {name}" for suite, name in old if (suite, name) not in new],
        added=[f"{suite}: {name}" for suite, name in new if (suite, name) not in old],
        notes=_notes(before, after),
    )


def _change(before: Row[Details], after: Row[Details]) -> Change:
    over, under = (after, before) if after.better == "higher" else (before, after)
    # A smallest number instead of zero: seconds and rates that are zero compare with nothing.
    speed = over.value / max(under.value, 1e-30)
    return Change(before, after, speed, bootstrap_ratio(over.repeats, under.repeats, after.statistic))


def _check_network(before: Result, after: Result) -> None:
    differing = [
        f"{name} {one} and {other}"
        for name, one, other in _differences(before, after)
        if name.startswith("model.") and name not in OF_THE_DATA
    ]
    if differing:
        raise ReportError(
            f"the reports are of different networks: {', '.join(differing)}; compare reports of the same --arch"
        )


def _differences(before: Result, after: Result) -> Iterator[tuple[str, Any, Any]]:
    """(setting, its value before, its value after) where they differ; what a report does not name has its default."""
    for section, defaults in Config().to_dict().items():
        if isinstance(defaults, dict):
            old, new = ({**defaults, **_table(result.config, section)} for result in (before, after))
            for name in dict.fromkeys([*old, *new]):
                if old.get(name) != new.get(name):
                    yield f"{section}.{name}", old.get(name), new.get(name)


def _table(values: dict[str, Any], name: str) -> dict[str, Any]:
    table = values.get(name)
    return table if isinstance(table, dict) else {}


def _differing(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A note on the values that differ, or none."""
    pairs = [f"{k} {old.get(k)} and {new.get(k)}" for k in dict.fromkeys([*old, *new]) if old.get(k) != new.get(k)]
    return [f"{what}: {', '.join(pairs)}"] if pairs else []


def _notes(before: Result, after: Result) -> list[str]:
    both = before, after
    # A report from before there was a setting does not tell what it would have been.
    shared = before.settings.keys() & after.settings.keys() - _NOT_OF_ROWS
    old, new = ({name: value for name, value in result.settings.items() if name in shared} for result in both)
    return [
        *_differing("measured on different machines", *map(_hardware, both)),
        *_differing("measured with different software", *map(_software, both)),
        *_data_notes(before, after),
        *_settings_notes(before, after),
        *_training_notes(before, after),
        *_differing("measured in different ways", old, new),
        *(f"the {name} report was interrupted" for name, r in zip(("old", "new"), both, strict=True) if not r.complete),
    ]


def _hardware(result: Result) -> dict[str, Any]:
    found = {what: result.machine.get(what) for what in ("cpu", "gpu", "usable_cores")}
    return {what: value.get("name") if isinstance(value, dict) else value for what, value in found.items()}


def _software(result: Result) -> dict[str, Any]:
    packages = {name: version or "none" for name, version in _table(result.machine, "packages").items()}
    return {"Python": result.machine.get("python"), **packages, "commit": result.machine.get("commit") or "unknown"}


def _data_notes(before: Result, after: Result) -> list[str]:
    old, new = (_table(result.data, "files") for result in (before, after))
    # A set that was prepared in more formats has more files, of the same images.
    shared = old.keys() & new.keys()
    differing = sorted(path for path in shared if old[path] != new[path])
    if shared and not differing:
        return []
    if len(differing) < len(shared):
        return [f"files of the prepared sets differ, others are alike: {', '.join(differing)}"]
    one, other = (f"{r.data.get('source')} ({r.data.get('train_images')} for training)" for r in (before, after))
    why = ("whose files differ" if shared else "which have no file in common") if one == other else ""
    return [f"measured on different images: {one} and {other}" + (f", {why}" if why else "")]


def _settings_notes(before: Result, after: Result) -> list[str]:
    one, other = (result.config.get("recipe") for result in (before, after))
    # Where the recipes differ, all other settings follow from their names.
    differing = [
        (name, old, new)
        for name, old, new in _differences(before, after)
        if name in _SPEED or (one == other and not name.startswith("model.") and name not in _SAID)
    ]
    old, new = {name: old for name, old, _ in differing}, {name: new for name, _, new in differing}
    recipes = [] if one == other else [f"measured by different recipes: {one} and {other}"]
    return [*recipes, *_differing("measured with different settings", old, new)]


def _training_notes(before: Result, after: Result) -> list[str]:
    trainings = [row.details for result in (before, after) for row in result.about(AccuracyDetails)]
    if len(trainings) != 2:
        return []
    one, other = trainings
    pairs = [
        ("target", one.target, other.target),
        ("epochs", one.epochs, other.epochs),
        # Some older reports don't name it.
        ("batch size", one.batch_size or other.batch_size, other.batch_size or one.batch_size),
    ]
    return [f"trainings of different {what}: {old} and {new}" for what, old, new in pairs if old != new]


def describe(comparison: Comparison, max_loss: float) -> list[str]:
    """The lines that the command prints."""
    lines = [f"note: {note}" for note in comparison.notes]
    lost = comparison.losses(max_loss)
    for change in comparison.changes:
        before, after = change.before, change.after
        low_high = change.interval
        ends = f"[{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "one repeat, no interval"
        noise = ", within the noise" if low_high and low_high[0] <= 1 <= low_high[1] else ""
        mark = "LOSS " if change in lost else "     "
        lines.append(
            f"{mark}{change.speed:6.3f}x {ends}{noise}  {after.suite}: {after.name}  "
            f"({number(before.value)} to {number(after.value)} {after.unit})"
        )
    lines += [f"only in the old report: {name}" for name in comparison.gone]
    lines += [f"only in the new report: {name}" for name in comparison.added]
    verdict = f"{len(lost)} of {len(comparison.changes)} rows lost more than {max_loss:.1%}"
    return [*lines, verdict]
