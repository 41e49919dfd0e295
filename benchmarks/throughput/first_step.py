"""A process that makes one training step and says when it was done:
``python -m fast_train.benchmarks.throughput.first_step CONFIG.json``.

It does what `fast-train` does up to there, imports, compilation and capture included; only the run's folder is left
out. The last line it prints is JSON: ``done_at``, seconds since 1970.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from fast_train.common.startup import quick_imports


def main(arguments: list[str] | None = None) -> None:
    """Read the configuration (`Config.to_dict` as JSON) and train one step."""
    parser = argparse.ArgumentParser(
        prog="python -m fast_train.benchmarks.throughput.first_step", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="a run's settings, as it keeps them")
    path = parser.parse_args(arguments).config
    # In the way of `pipeline.cli`, and with all that it imports before it trains.
    with quick_imports():
        from fast_train.data_prep.manifest import PreparedSet
        from fast_train.pipeline.config.settings import Config
        from fast_train.pipeline.engine.build import ready_step
        from fast_train.pipeline.engine.runtime import running
        from fast_train.pipeline.engine.trainer import Trainer
        from fast_train.pipeline.report import progress, summary  # noqa: F401

    config = Config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    prepared = PreparedSet.open(config.data.path)
    with running(config.run) as runtime, Trainer(config, prepared, runtime) as trainer:
        trainer.check_memory()
        # As `Trainer.prepare`, which keeps the step to itself: a training would go on to the end of an epoch.
        ready = ready_step(trainer.step, trainer.loader.example(), trainer.runtime)
        ready(next(trainer.loader.feed()))
        # Reading the sums waits for the device.
        trainer.step.metrics.read()
        print(json.dumps({"done_at": time.time()}), flush=True)


if __name__ == "__main__":
    main()
