"""What the terminal shows: messages and progress bars, or plain lines where it is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
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
from rich.text import Text

from fast_train.common.text import format_bytes

_SECONDS_BETWEEN_LINES = 10.0

#: Called with how much more is done.
Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and round(speed) else "", style="progress.data.speed")


class Display:
    """Messages and progress on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def say(self, text: str) -> None:
        """One message; characters that the terminal can't show are escaped."""
        encoding = self._console.encoding
        printable = text.encode(encoding, "backslashreplace").decode(encoding)
        self._console.print(printable, markup=False, emoji=False, highlight=False, soft_wrap=True)

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
