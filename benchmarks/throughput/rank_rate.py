"""A process that trains as one of those that torchrun started, or alone, and says how fast all of them are:
``torchrun --nproc-per-node N -m fast_train.benchmarks.throughput.rank_rate CONFIG.json SECONDS``.

It does what `fast-train` does with its loader and its step; a run's folder and evaluations are left out. The first
rank's last line is JSON: ``rate``, training images a second of all ranks together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from fast_train.common.startup import quick_imports

_WARM_UP_STEPS = 20


def main(arguments: list[str] | None = None) -> None:
    """Read the configuration (`Config.to_dict` as JSON) and train for some seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m fast_train.benchmarks.throughput.rank_rate", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="a run's settings, as it keeps them")
    parser.add_argument("seconds", type=float, metavar="SECONDS", help="to train for, after some steps of warm-up")
    flags = parser.parse_args(arguments)
    with quick_imports():
        from fast_train.data_prep.manifest import PreparedSet
        from fast_train.pipeline.config.settings import Config
        from fast_train.pipeline.engine.build import ready_step
        from fast_train.pipeline.engine.runtime import running
        from fast_train.pipeline.engine.trainer import Trainer
        from fast_train.pipeline.ranks import joined

    config = Config.from_dict(json.loads(flags.config.read_text(encoding="utf-8")))
    prepared = PreparedSet.open(config.data.path)
    with joined() as ranks, running(config.run) as runtime, Trainer(config, prepared, runtime) as trainer:
        ready = ready_step(trainer.step, trainer.loader.example(), trainer.runtime)

        def train(steps: int) -> float:
            """The seconds that so many steps take."""
            done, epoch = 0, 0
            trainer.step.metrics.read()
            began = time.perf_counter()
            while done < steps:
                trainer.loader.set_epoch(epoch)
                for batch, _ in zip(trainer.loader.feed(), range(steps - done), strict=False):
                    ready(batch)
                    done += 1
                epoch += 1
            # Reading the sums waits for the device, and for the other ranks.
            trainer.step.metrics.read()
            return time.perf_counter() - began

        first = train(_WARM_UP_STEPS) / _WARM_UP_STEPS
        # As many on all ranks.
        steps = ranks.highest(max(int(flags.seconds / first), 1)) or 1
        seconds = train(steps)
        if ranks.first:
            print(json.dumps({"rate": steps * config.data.batch_size / seconds}), flush=True)


if __name__ == "__main__":
    main()
