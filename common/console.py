"""What the terminal shows: messages and progress bars, or plain lines where it is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.text import Text

from fast_train.common.text import format_bytes, printable

_SECONDS_BETWEEN_LINES = 10.0

#: Called with how much more is done.
Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and round(speed) else "", style="progress.data.speed")


class PlainConsole(Console):
    """Every text is shown as it stands: no markup; what the terminal would obey or can't show is escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=self._printable(segment.text))

    def _printable(self, text: str) -> str:
        return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


class Display:
    """Messages and progress on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or PlainConsole()

    def say(self, text: str) -> None:
        """One message; see `PlainConsole`."""
        self._console.print(text, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int | None, *, done: int = 0, in_bytes: bool = False) -> Iterator[Advance]:
        """Show how far something is, from ``done`` to ``total``: the block calls what it is given as work goes on."""
        if not self._console.is_terminal:
            with self._lines(label, total, done=done, in_bytes=in_bytes) as advance:
                yield advance
            return
        amounts = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn(), _Rate()]
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn()]
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def _lines(self, label: str, total: int | None, *, done: int, in_bytes: bool) -> Iterator[Advance]:
        amount = format_bytes if in_bytes else "{:,.0f}".format
        began = last = time.monotonic()
        already = done

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                rate = (done - already) / (now - began)
                of_total = f" of {amount(total)}" if total else ""
                speed = f", {amount(rate)}/s" if round(rate) else ""
                left = f", {_duration((total - done) / rate)} left" if total and speed else ""
                self.say(f"{label}: {amount(done)}{of_total}{speed}{left}")

        yield advance
        seconds = time.monotonic() - began
        # Over a moment, a rate says nothing; nor does one that rounds to 0.
        rate = (done - already) / seconds if seconds > 0.5 else 0
        self.say(f"{label}: {amount(done)} in {seconds:.1f} s" + (f" ({amount(rate)}/s)" if round(rate) else ""))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
