"""The figures of `benchmarks.lab.cli` as tables, against what they aim at, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_train.benchmarks.instrument.records import Details
from fast_train.benchmarks.instrument.result import Format, Row
from fast_train.benchmarks.lab import profile
from fast_train.benchmarks.lab.floors import NORM
from fast_train.benchmarks.lab.records import END_TO_END, KERNELS, CpuAugmentationDetails, GroupDetails, StepDetails
from fast_train.benchmarks.present.page import write_files
from fast_train.benchmarks.present.tables import Table, interval, number, percent
from fast_train.benchmarks.throughput.records import AugmentationDetails

if TYPE_CHECKING:
    from fast_train.benchmarks.lab.run import Lab

FORMAT = Format(schema="fast-train.step-lab", version=1)
JSON, TEXT = "step-lab.json", "step-lab.md"
#: Of ResNet-18 on one H100.
IMAGES_PER_SECOND, SHARE_OF_STEP, SHARE_OF_COPY, SHARE_OF_AUGMENTATION = 120_000, 0.98, 0.70, 0.01


def write(folder: Path, lab: Lab) -> str:
    """Write JSON and tables; returns the tables, but for that of the layers."""
    text = "\n".join(tables(lab))
    layers = _layers_table(lab.floors).to_markdown() if lab.floors else ""
    more = {"aims": aims(lab), "floors": lab.floors, "losses": lab.losses}
    write_files(folder, {JSON: lab.bench.result.to_json(FORMAT, more), TEXT: f"{text}\n{layers}".encode()})
    return text


def aims(lab: Lab) -> list[dict[str, Any]]:
    """What each figure aims at, and whether it got there; ``reached`` is None where that can't be said."""
    result = lab.bench.result
    steps = result.about(StepDetails)
    fastest = max((row.value for row in steps if row.details.point == END_TO_END), default=None)
    of_step = [row.details.share_of_step for row in steps]
    of_copy = [row.details.share_of_copy for row in result.about(AugmentationDetails)]
    found = [
        _aim("images/s end to end, the fastest", fastest, IMAGES_PER_SECOND),
        _aim("end to end over the step alone, the least", _least(of_step), SHARE_OF_STEP),
        _aim("augmentation over copy bandwidth, the least", _least(of_copy), SHARE_OF_COPY),
        _aim("augmentation in the plain step's kernel time", _augmentation(lab), SHARE_OF_AUGMENTATION, below=True),
    ]
    if lab.bench.device.type != "cuda":
        # They are a GPU's.
        found = [{**aim, "reached": None} for aim in found]
    if lab.losses:
        for name, difference in lab.losses["difference"].items():
            what = f"loss: how far {name} is from plain; aim: another seed's distance"
            found.append(_aim(what, difference, lab.losses["noise"], below=True))
    return found


def _aim(what: str, value: float | None, aim: float, *, below: bool = False) -> dict[str, Any]:
    reached = None if value is None else value <= aim if below else value >= aim
    return {"what": what, "aim": aim, "below": below, "measured": value, "reached": reached}


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _augmentation(lab: Lab) -> float | None:
    """Its part of the kernel time of the first option, the plain step."""
    groups = [row.details for row in lab.bench.result.about(GroupDetails)]
    return next((details.share for details in groups if details.group == profile.AUGMENTATION), None)


def tables(lab: Lab) -> Iterator[str]:
    """Markdown, one table after the other."""
    result = lab.bench.result
    yield _aims_table(lab).to_markdown()
    if rates := result.about(StepDetails):
        yield _rates_table(rates).to_markdown()
    if augmented := result.about(AugmentationDetails):
        cells = [[r.name, number(r.value), _spread(r), percent(r.details.share_of_copy)] for r in augmented]
        columns = ("augmentation", "images/s", "interval, spread", "of the copy bandwidth")
        yield Table(columns, cells).to_markdown()
    if on_cpu := result.about(CpuAugmentationDetails):
        cells = [[r.name, number(r.value), _spread(r), number(r.details.over_reference)] for r in on_cpu]
        columns = ("augmentation on the CPU", "images/s", "interval, spread", "times the reference")
        yield Table(columns, cells).to_markdown()
    if kernels := result.suite(KERNELS):
        shares = {row.name: row.details.share for row in result.about(GroupDetails)}
        cells = [[r.name, number(r.value), _spread(r), percent(shares.get(r.name))] for r in kernels]
        yield Table(("kernels", "ms a step", "interval, spread", "share"), cells).to_markdown()
    if lab.floors:
        yield _groups_table(lab.floors, result.about(GroupDetails)).to_markdown()
    if lab.losses:
        yield _losses_table(lab.losses).to_markdown()
    if skipped := result.skipped:
        cells = [[s.suite, s.name, s.reason] for s in skipped]
        yield Table(("not measured", "what", "why"), cells, numeric=()).to_markdown()


def _aims_table(lab: Lab) -> Table:
    cells = []
    for aim in aims(lab):
        reached = {True: "yes", False: "no", None: "a GPU's aim"}[aim["reached"]]
        limit = f"{'at most' if aim['below'] else 'at least'} {number(aim['aim'])}"
        measured = aim["measured"]
        cells.append([aim["what"], limit, number(measured), "not measured" if measured is None else reached])
    return Table(("what", "aim", "measured", "reached"), cells)


def _rates_table(rows: Sequence[Row[StepDetails]]) -> Table:
    cells = []
    for row in rows:
        share, over_plain = row.details.share_of_step, row.details.over_plain
        compared = f"{percent(share)} of the step" if share is not None else f"{number(over_plain)} of plain"
        cells.append([row.name, number(row.value, 5), _spread(row), compared])
    return Table(("step", "images/s", "interval, spread", "compared"), cells)


def _spread(row: Row[Details]) -> str:
    low, high = row.interval or (None, None)
    return f"{interval(low, high, 4)}, {percent(row.spread)}"


def _floor_caption(found: dict[str, Any]) -> str:
    copy, matrix = found["copy_bytes_per_second"] / 1e12, found["matrix_flops_per_second"] / 1e12
    how = "given" if found["given"] else "measured here"
    return (
        f"Floors, computed, not measured: batch {found['batch']:,}, copy {copy:.3g} TB/s, "
        f"matrices {matrix:.4g} TFLOP/s ({how})."
    )


def _layers_table(found: dict[str, Any]) -> Table:
    cells = [
        [p["layer"], "x".join(map(str, p["shape"])), f"{p['kind']}, {p['what']}", number(p["flops"] / 1e9),
         number(p["bytes"] / 1e6), number(1e3 * p["floor_seconds"]), p["bound"]]
        for p in found["parts"]
    ]  # fmt: skip
    columns = ("layer", "output", "what", "GFLOP", "MB", "floor, ms", "bound by")
    return Table(columns, cells, _floor_caption(found), numeric=(3, 4, 5))


def _groups_table(found: dict[str, Any], kernels: Sequence[Row[GroupDetails]]) -> Table:
    """Floors beside what the first option, the plain step, took."""
    measured = {row.details.group: row.value for row in reversed(kernels)}
    sums = dict(found["groups"])
    # Kernels of norms don't tell their direction.
    norms = [name for name in sums if name.startswith(f"{NORM},")]
    sums[profile.NORM] = sum(sums.pop(name) for name in norms)
    cells = [[name, number(1e3 * s), number(measured.get(name))] for name, s in sums.items()]
    total = sum(sums.values())
    cells.append(["all of these", number(1e3 * total), ""])
    cells.append(["images/s of that", number(found["batch"] / total), ""])
    return Table(("group", "floor, ms", "plain step, measured, ms"), cells, _floor_caption(found))


def _losses_table(found: dict[str, Any]) -> Table:
    cells = [[f"plain, seed {seed}", number(value, 4), ""] for seed, value in found["plain_end"].items()]
    cells += [
        [name, f"differs by {number(found['difference'][name])}", "within noise" if within else "more than noise"]
        for name, within in found["within_noise"].items()
    ]
    noise = number(found["noise"])
    caption = f"Mean loss at the end of {found['steps']} steps; between two seeds it differs by up to {noise}."
    return Table(("step", "loss", "verdict"), cells, caption)
