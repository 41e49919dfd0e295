"""Fifty damaged inputs of each kind; `python -m tests.mutants --count 1000` has more."""

import pytest
from mutant_readers import READERS
from mutants import run_all

_LIGHT = ("manifest", "packed", "images", "recipe")


@pytest.mark.parametrize("readers", [_LIGHT, tuple(name for name in READERS if name not in _LIGHT)])
def test_damaged_input_is_a_line_or_the_right_data(readers):
    for findings in run_all(readers, range(50)):
        assert findings.tried == 50
        assert not findings.found, str(findings)
        assert findings.refused > 0, str(findings)
