"""Two reports side by side: the ratio of each row that both have, and whether something got worse."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import bootstrap_ratio
from benchmarks.present.tables import number
from benchmarks.result import ReportError, Result, Row


@dataclass(frozen=True)
class Change:
    """speed: how many times as good as before, above 1 for better, whichever way the unit goes. interval: of it, or
    None where a report has but one repeat."""

    before: Row
    after: Row
    speed: float
    interval: tuple[float, float] | None

    @property
    def loss(self) -> float:
        """The part that was lost: 0.1 where the row is at 90 % of what it was; 0 or less where it got better."""
        return 1 - self.speed


@dataclass(frozen=True)
class Comparison:
    """changes: of the rows that both reports have. gone, added: names of the others. notes: what makes the two hard to
    compare."""

    changes: list[Change]
    gone: list[str]
    added: list[str]
    notes: list[str]

    def losses(self, max_loss: float) -> list[Change]:
        """The rows that lost more than a part ``max_loss``."""
        return [change for change in self.changes if change.loss > max_loss]


def compare(before: Result, after: Result) -> Comparison:
    """ReportError where the reports have no row in common."""
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


def _change(before: Row, after: Row) -> Change:
    over, under = (after, before) if after.better == "higher" else (before, after)
    # A smallest number in place of zero: seconds and rates that are zero compare with nothing.
    speed = over.value / max(under.value, 1e-30)
    return Change(before, after, speed, bootstrap_ratio(over.repeats, under.repeats, after.statistic))


def _notes(before: Result, after: Result) -> list[str]:
    notes = []
    for what in ("cpu", "gpu", "usable_cores"):
        one, other = (result.machine.get(what) for result in (before, after))
        if isinstance(one, dict) and isinstance(other, dict):
            one, other = one.get("name"), other.get("name")
        if one != other:
            notes.append(f"measured on different machines: {what} {one} and {other}")
    for name, result in (("old", before), ("new", after)):
        if not result.complete:
            notes.append(f"the {name} report was interrupted")
    return notes


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
