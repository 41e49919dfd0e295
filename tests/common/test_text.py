import os

import pytest

from fast_train.common.text import is_plain, show


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
