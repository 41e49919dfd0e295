"""Ten kills at random moments; tests/torture_kills.py, which does it, takes any number, and more loaders."""

import os
import random
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_what_is_killed_goes_on_to_the_same_bits():
    """While it trains, saves, evaluates, draws, compiles or prepares a set."""
    seed = str(random.SystemRandom().randrange(1000))
    path = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "torture_kills.py"), "--quick", "--count", "10", "--seed", seed]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}{done.stdout}"
    assert "lost: 0" in done.stdout
