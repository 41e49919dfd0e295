"""The process whose start is measured."""

import json
import subprocess
import sys

from fast_train.benchmarks.throughput.suites.startup import package_environment
from fast_train.pipeline.config.recipe import resolve


def test_it_imports_as_fast_train_does_and_trains_a_step(prepared_path, tmp_path):
    """Python's collector froze what the imports made, as `fast-train` has it."""
    given = {"data": {"path": str(prepared_path), "batch_size": 16}, "run": {"device": "cpu"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(resolve("cpu-quick", given).to_dict()))
    code = (
        f"import gc; from benchmarks import first_step; first_step.main([{str(path)!r}]); print(gc.get_freeze_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=package_environment(), capture_output=True, text=True, check=True
    )
    step, frozen = done.stdout.splitlines()[-2:]
    assert json.loads(step)["done_at"] > 0
    assert int(frozen) > 100_000
