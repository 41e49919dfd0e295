"""Fifty damaged inputs of each kind; `python -m tests.mutants --count 1000` has more."""

import pytest
from mutant_readers import READERS, lacks
from mutants import run_all

_LIGHT = ("manifest", "packed", "images", "recipe")


@pytest.mark.parametrize("readers", [_LIGHT, tuple(name for name in READERS if name not in _LIGHT)])
def test_damaged_input_is_a_line_or_the_right_data(readers):
    lacking = {name: library for name in readers if (library := lacks(name))}
    for findings in run_all([name for name in readers if name not in lacking], range(50)):
        assert findings.tried == 50
        assert not findings.found, str(findings)
        assert findings.refused > 0, str(findings)
    if lacking:
        pytest.skip(f"the others passed; not installed: {', '.join(lacking.values())}")
