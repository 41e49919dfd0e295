"""Progress where standard output is not a terminal."""

import io
import itertools
import re

import pytest
from rich.console import Console
from rich.table import Table

from fast_train.common import console as display
from fast_train.common.console import Display, PlainConsole


@pytest.mark.parametrize(
    ("done", "seconds", "in_bytes", "line"),
    [
        (18, 41.7, False, "images: 18 in 41.7 s"),
        (1800, 40.0, False, "images: 1,800 in 40.0 s (45/s)"),
        (1800, 0.2, False, "images: 1,800 in 0.2 s"),
        (0, 2.0, False, "images: 0 in 2.0 s"),
        (9_000_000, 3.0, True, "images: 9.0 MB in 3.0 s (3.0 MB/s)"),
    ],
)
def test_a_rate_is_given_where_it_says_something(done, seconds, in_bytes, line, monkeypatch):
    clock = itertools.chain([0.0], itertools.repeat(seconds))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with Display(Console(file=file)).progress("images", None, in_bytes=in_bytes) as advance:
        advance(done)
    assert re.sub(r"\s+", " ", file.getvalue().splitlines()[-1]) == line


def test_a_long_transfer_says_how_fast_it_is_and_how_long_it_will_take(monkeypatch):
    clock = itertools.chain([0.0], itertools.repeat(20.0))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with Display(Console(file=file)).progress("a.gz from host", 10_000_000, done=6_000_000, in_bytes=True) as advance:
        advance(2_000_000)
    assert file.getvalue().splitlines()[0] == "a.gz from host: 8.0 MB of 10.0 MB, 100.0 kB/s, 20 s left"


@pytest.mark.parametrize("terminal", [False, True])
def test_others_text_does_not_command_the_terminal(terminal, monkeypatch):
    """In a message, a table and a bar; what rich itself sends the terminal goes on to it."""
    # To one that is called dumb it sends nothing.
    monkeypatch.setenv("TERM", "xterm")
    name = "[red]\x1b]0;x\x07\u202e\x9b"
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=terminal, width=200)
    table = Table()
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    display = Display(console)
    display.say(name)
    with display.progress(name, 3) as advance:
        advance(3)
    assert file.getvalue().count(r"[red]\x1b") >= 4
    assert r"[red]\x1b]0;x\u202e\x9b" in file.getvalue()
    for sent in (name, "\x07", "\u202e", "\x9b", "\x1b]"):
        assert sent not in file.getvalue()
    assert ("\x1b[" in file.getvalue()) == terminal


def test_what_an_encoding_lacks_is_escaped():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Display(PlainConsole(file=file)).say("caf\u00e9")
    file.flush()
    assert file.buffer.getvalue() == b"caf\\xe9\n"
