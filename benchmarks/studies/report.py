"""A study's report: what was found, the curves, the tables, and how far the setting is from the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fast_train.benchmarks.instrument.records import ReportError
from fast_train.benchmarks.instrument.result import Format
from fast_train.benchmarks.instrument.statistics import bootstrap
from fast_train.benchmarks.present.page import Block, Document, Notice, write_document, write_files
from fast_train.benchmarks.present.picture import LINES, Picture, Theme
from fast_train.benchmarks.present.tables import Table, machine_table, percent
from fast_train.benchmarks.studies.base import (
    PAPER_BATCH,
    PAPER_IMAGES,
    PAPER_STEPS,
    Comparison,
    CurvePlot,
    Panel,
    Study,
)
from fast_train.benchmarks.studies.train import DIVERGED, DONE, FLOAT32, Run, last_errors
from fast_train.pipeline.errors import ConfigError

FORMAT = Format(schema="fast-train.bench-study", version=1)
_JSON = "report.json"
# How training errors are drawn in a panel that has test errors too.
_THIN, _DASHED = 1.0, (0, (2, 1.5))
_ERRORS = {"train": "training error", "test": "test error"}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report says. data, machine, settings: in JSON's types. wanted: how many runs there were to be."""

    study: Study
    runs: Sequence[Run]
    wanted: int
    data: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]

    def to_json(self) -> bytes:
        return FORMAT.to_json(
            {
                "complete": len(self.runs) == self.wanted,
                "settings": self.settings,
                "data": self.data,
                "machine": self.machine,
                "study": self.study.name,
                "runs": [asdict(run) for run in self.runs],
            }
        )

    @property
    def seeds(self) -> int:
        """The most seeds that any variant has."""
        return max((sum(run.variant == v.name for run in self.runs) for v in self.study.variants), default=0)


def check_folder(folder: Path, study: Study) -> None:
    """ConfigError where the folder is a file, or holds a report that is not one of this study."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder as --out")
    path = folder / _JSON
    if not path.exists():
        return
    try:
        record = FORMAT.parse(path.read_bytes())
    except ReportError as error:
        raise ConfigError(f"{path} is not a report of a study; give another --out") from error
    if record.get("study") != study.name:
        raise ConfigError(f"{folder} holds a report of study {record.get('study')}; give another --out")


def write_report(folder: Path, findings: Findings) -> list[str]:
    """Write report.json, report.md, the pictures and report.html; returns a line on each picture that can't be
    drawn."""
    write_files(folder, {_JSON: findings.to_json()})
    return write_document(folder, build_document(findings))


def build_document(findings: Findings) -> Document:
    study = findings.study
    sections: dict[str, Sequence[Block | None]] = {
        "What was found": _comparisons(findings),
        "Curves": [curve_picture(plot, findings) for plot in study.plots],
        "Errors after the last epoch": [_errors(findings)],
        "What the papers report": [_reported(study)],
        "How far this is from the paper's setting": [Notice("note", distance(findings))],
        "Machine and settings": [
            machine_table(
                findings.machine,
                [["computed in", _arithmetic(findings)], ["command", f"`{findings.settings['command']}`"]],
            )
        ],
    }
    return Document(study.title, study.question, sections, _warnings(findings))


def _warnings(findings: Findings) -> list[str]:
    found = []
    if findings.data["synthetic"]:
        found.append("The images are synthetic: these figures say nothing of photographs.")
    if len(findings.runs) < findings.wanted:
        found.append(f"Only {len(findings.runs)} of {findings.wanted} trainings are done; the same command goes on.")
    found += [
        f"{run.variant}, seed {run.seed}, diverged and counts for nothing."
        for run in findings.runs
        if run.status == DIVERGED
    ]
    return found


def distance(findings: Findings) -> list[str]:
    """How the trainings differ from the paper's, a sentence each."""
    settings, data = findings.settings, findings.data
    steps = max((run.history[-1]["step"] for run in findings.runs if run.history), default=0)
    batch, images = settings["batch_size"], data["train_images"]
    sentences = [
        f"Length: {steps:,} steps of {batch:,} images, {steps * batch / images:.1f} epochs. The paper trains "
        f"{PAPER_STEPS:,} steps of {PAPER_BATCH}, {PAPER_STEPS * PAPER_BATCH / PAPER_IMAGES:.0f} epochs of its "
        f"{PAPER_IMAGES:,} images. The rate falls to a tenth at 1/2 and 3/4 of the run, as there.",
        f"Data: {images:,} training images of {data['source']}; the paper's are CIFAR-10's.",
        f"Seeds: {findings.seeds}. The paper trains most nets once.",
    ]
    if steps * batch < PAPER_STEPS * PAPER_BATCH:
        sentences.append(
            "Training this short ends before the nets converge: what stands above says how fast they learn, not what "
            "they reach."
        )
    if {run.dtype for run in findings.runs} - {FLOAT32}:
        sentences.append(
            f"Arithmetic: convolutions and matrix products in {_arithmetic(findings)}. The paper's is float32, which "
            "--amp off gives."
        )
    return [*sentences, *findings.study.differences]


def _arithmetic(findings: Findings) -> str:
    """The type that the trainings computed in, or how many computed in which."""
    counts = Counter(run.dtype for run in findings.runs)
    if len(counts) < 2:
        return "".join(counts)
    return " and ".join(f"{name} ({count} of {len(findings.runs)} trainings)" for name, count in counts.items())


def _comparisons(findings: Findings) -> list[Block]:
    sentences = [
        text
        for comparison in findings.study.comparisons
        for error in comparison.errors
        if (text := compare(findings.runs, comparison, error)) is not None
    ]
    return [Notice("note", sentences)] if sentences else []


def compare(runs: Sequence[Run], comparison: Comparison, error: str) -> str | None:
    """One comparison in words; None where a variant is missing. No conclusion where the seeds allow none."""
    first, second = (last_errors(runs, name, error) for name in (comparison.first, comparison.second))
    if not first or not second:
        return None
    low, high = np.mean(first), np.mean(second)
    difference = 100 * (high - low)
    text = (
        f"The {_ERRORS[error]} of {comparison.second} ({high:.2%}) is {abs(difference):.2f} points "
        f"{'higher' if difference > 0 else 'lower'} than that of {comparison.first} ({low:.2%})"
    )
    if min(len(first), len(second)) < 2:
        return f"{text}; with one seed there is no telling it from chance."
    # All pairs of seeds: whichever were drawn, the sign must be the same.
    signs = {np.sign(b - a) for a in first for b in second}
    clear = "for every pair of seeds" if len(signs) == 1 else "but not for every pair of seeds: no difference is shown"
    return f"{text}, {clear} ({len(first)} and {len(second)} seeds)."


def _errors(findings: Findings) -> Table:
    rows = []
    for variant in findings.study.variants:
        done = [run for run in findings.runs if run.variant == variant.name and run.status == DONE]
        if not done:
            continue
        cells = [variant.name, f"{done[0].parameters:,}"]
        for error in ("train", "test"):
            values = last_errors(findings.runs, variant.name, error)
            cells += [percent(float(np.mean(values)), 2) if values else "-", _interval(values)]
        rows.append([*cells, str(len(done)), percent(variant.paper_error, 2)])
    columns = [
        "variant",
        "parameters",
        "training error",
        "95% interval",
        "test error",
        "95% interval",
        "seeds",
        "paper's test error",
    ]
    return Table(
        columns, rows, caption="Training errors are of augmented images, while the net changes; means over seeds"
    )


def _interval(values: Sequence[float]) -> str:
    ends = bootstrap(values, "mean")
    return f"{ends[0]:.2%} to {ends[1]:.2%}" if ends else ""


def _reported(study: Study) -> Table:
    rows = [[r.what, r.error, r.setting, r.place] for r in study.reported]
    return Table(["what", "error", "setting", "place"], rows, numeric=(1,))


def curve_picture(plot: CurvePlot, findings: Findings) -> Picture | None:
    """The errors of a plot's variants over epochs; None where fewer than two of them were trained."""
    trained = {run.variant for run in findings.runs if run.status == DONE and run.history}
    if len(trained.intersection(name for panel in plot.panels for name in panel.variants)) < 2:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        all_axes = np.atleast_1d(figure.subplots(1, len(plot.panels), sharex=True, sharey=True))
        for axes, panel in zip(all_axes, plot.panels, strict=True):
            _draw_panel(axes, panel, [name for name in panel.variants if name in trained], findings.runs, theme)
        all_axes[0].set_ylabel("error")

    follows = f" After {plot.source} of He et al. 2015." if plot.source else ""
    both = any(len(panel.errors) == 2 for panel in plot.panels)
    lines = "Bold: test error; thin and dashed: training error. " if both else ""
    return Picture(
        name=plot.name,
        title=plot.title,
        caption=f"{plot.title}, error over epochs. {lines}Training errors are of augmented images. Means over "
        f"seeds.{follows}",
        size=(4.6 * len(plot.panels) + 0.8, 4.0),
        draw=draw,
    )


def _draw_panel(axes: Axes, panel: Panel, names: Sequence[str], runs: Sequence[Run], theme: Theme) -> None:
    for place, name in enumerate(names):
        colour = theme.series[place % len(theme.series)]
        for error in panel.errors:
            epochs, errors = _mean_curve(runs, name, f"{error}_error")
            if not epochs:
                continue
            tested = error == "test"
            named = tested or len(panel.errors) == 1
            axes.plot(
                epochs,
                errors,
                color=colour,
                linewidth=2.2 if tested else _THIN,
                linestyle=LINES[place % len(LINES)] if named else _DASHED,
                # A single epoch makes no line.
                marker="o" if named and len(epochs) < 15 else "x" if len(epochs) == 1 else None,
                label=name if named else None,
            )
    axes.set_title(panel.title)
    axes.set_xlabel("epoch")
    # Also where there is but one epoch: no ticks between epochs.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(True)
    if len(panel.errors) == 2:
        axes.plot([], [], color=theme.muted, linewidth=_THIN, linestyle=_DASHED, label="training error")
    if names:
        axes.legend(loc="best")


def _mean_curve(runs: Sequence[Run], variant: str, key: str) -> tuple[list[int], list[float]]:
    """Epochs at which every seed has a value, and the means."""
    curves = [
        {record["epoch"]: record[key] for record in run.history if record[key] is not None}
        for run in runs
        if run.variant == variant and run.status == DONE
    ]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return epochs, [float(np.mean([curve[epoch] for curve in curves])) for epoch in epochs]
