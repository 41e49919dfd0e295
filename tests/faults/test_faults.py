"""Each fault is made, and the command ends as it should, keeps what it had, and can be repeated."""

import pytest
from faults.cases import CASES
from faults.harness import make_inputs, run_fault


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    make_inputs(root)
    return root


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[] if case.quick else pytest.mark.slow) for case in CASES]
)
def test_a_fault(case, inputs, tmp_path):
    verdict = run_fault(case, inputs, tmp_path)
    if verdict.missing is not None:
        pytest.skip(f"this machine can't make the fault: {verdict.missing}")
    assert not verdict.problems, "\n".join(verdict.problems)
