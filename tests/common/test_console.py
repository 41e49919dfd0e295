"""Progress where standard output is not a terminal."""

import io
import itertools
import re

import pytest
from rich.console import Console

from fast_train.common import console as display
from fast_train.common.console import Display


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
