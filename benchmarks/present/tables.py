"""Tables: the same rows as markdown and as HTML, and numbers written as people read them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fast_train.common.text import format_bytes

# What markdown may read as more than itself; within a word an underscore is one.
_MARKS = re.compile(r"[\\`*<>\[\]|~&#]|^[-+](?= )|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Table:
    """columns: the headings. rows: texts, one a column; ``code`` between backticks is set as such. numeric: the
    columns (0-based) that are aligned to the right; by default all but the first. strong: rows to point out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: Sequence[int] | None = None
    strong: Sequence[int] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} of the table has {len(row)} cells for {len(self.columns)} columns")

    def right_aligned(self, column: int) -> bool:
        return column in self.numeric if self.numeric is not None else column > 0

    def to_markdown(self) -> str:
        rule = ["---:" if self.right_aligned(k) else "---" for k in range(len(self.columns))]
        # A bar ends a cell even within code.
        head, *rows = (
            [re.sub(r"(?<!\\)\|", r"\|", inline_markdown(c)) for c in row] for row in (self.columns, *self.rows)
        )
        rows = [[f"**{cell}**" if i in self.strong and cell else cell for cell in row] for i, row in enumerate(rows)]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
        return "\n".join(([f"*{inline_markdown(self.caption)}*", ""] if self.caption else []) + lines) + "\n"

    def to_html(self) -> str:
        """A ``<table>`` in a box that scrolls by itself where the page is narrow."""
        head = "".join(self._cell("th", k, title) for k, title in enumerate(self.columns))
        body = []
        for i, row in enumerate(self.rows):
            cells = "".join(self._cell("td", k, cell) for k, cell in enumerate(row))
            body.append(f'<tr class="strong">{cells}</tr>' if i in self.strong else f"<tr>{cells}</tr>")
        caption = f"<caption>{inline_html(self.caption)}</caption>" if self.caption else ""
        lines = [f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead>', "<tbody>", *body]
        return "\n".join([*lines, "</tbody></table></div>", ""])

    def _cell(self, tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if self.right_aligned(column) else ""
        return f"<{tag}{kind}>{inline_html(text)}</{tag}>"


def inline_html(text: str) -> str:
    """Text as HTML; what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def inline_markdown(text: str) -> str:
    """Text as one line of markdown; what stands between backticks as code. Nothing else in it means anything: names,
    paths and messages are other people's."""
    # Every second part is code, which is kept as it is.
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if number % 2 else _MARKS.sub(r"\\\g<0>", part) for number, part in enumerate(parts))


def number(value: float | None, digits: int = 3) -> str:
    """A number with thousands separators and at least ``digits`` significant digits; - for None and what is not
    finite."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """``low to high``; empty where there is none."""
    return "" if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"


def percent(share: float | None, decimals: int = 1) -> str:
    return "-" if share is None or not math.isfinite(share) else f"{share:.{decimals}%}"


def device_of(machine: Mapping[str, Any]) -> str:
    """The device as a person would name it. machine: a fingerprint of `instrument.machine`."""
    gpu = machine.get("gpu")
    cores = machine["usable_cores"]
    if machine.get("device") == "mps":
        return f"GPU of {machine['cpu']}"
    return str(gpu["name"]) if gpu else f"{cores} core{'s'[: cores != 1]} of {machine['cpu']}"


def machine_table(machine: Mapping[str, Any], more: Sequence[Sequence[str]]) -> Table:
    """What it was measured on, a row each. machine: a fingerprint, and ``watch`` where somebody watched. more: rows of
    this report, to come last."""
    gpu, watch = machine.get("gpu"), machine.get("watch")
    cores = (
        f"{machine['usable_cores']} of {machine['cores']} cores usable, threads of the step: {machine['torch_threads']}"
    )
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    rows = [
        ["device", device_of(machine)],
        ["CPU", f"{machine['cpu']}, {cores}"],
        ["GPU", f"{gpu['name']}, {format_bytes(gpu['memory_bytes'])}, CUDA {gpu['cuda']}" if gpu else "none"],
    ]
    if watch is not None:
        rows += [
            ["GPU before", _state(watch.get("before"))],
            ["GPU after", _state(watch.get("after"))],
            ["GPU watched", str(watch.get("nvml", ""))],
        ]
    rows += [
        ["software", f"Python {machine['python']}, {packages}"],
        ["commit", machine["commit"] or "unknown: not a checkout"],
    ]
    return Table(["what", "value"], [*rows, *more], numeric=())


def _state(state: Mapping[str, object] | None) -> str:
    if not state:
        return "not watched"
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in state.items())
