import os

import pytest

from fast_train.common.text import is_plain, one_line, printable, show


@pytest.mark.parametrize(
    "name", ["東京\u3000タワー", "a\u00a0b", "\u0645\u06cc\u200c\u062e", "👩\u200d🚀", "cafe\u0301", "-b c'\\"]
)
def test_signs_and_spaces_of_any_script_are_shown_as_they_are(name):
    assert is_plain(name)
    assert show(name) == name


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("\u202egnp.a\u2066\u200f", r"\u202egnp.a\u2066\u200f"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_acts_on_a_terminal_or_is_no_text_is_escaped(name, shown):
    assert not is_plain(name)
    assert show(name) == shown


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a\n  b\t\x1b]0;title\x07"), r"a b \x1b]0;title\x07"),
        (OSError(5, "\x1b[31mno", "x\x1b"), r"x\x1b: \x1b[31mno"),
        ("HTTP 500 \x9bwords", r"HTTP 500 \x9bwords"),
        (ValueError("the class 'a\u00a0b\u3000c'"), "the class 'a\u00a0b\u3000c'"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_that_quote_others_are_one_plain_line(error, line):
    assert one_line(error) == line


def test_lines_stay_lines():
    assert printable("a\nb\x1b[2J\r\n") == "a\nb\\x1b[2J\\r\n"
