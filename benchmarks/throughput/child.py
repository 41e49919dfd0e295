"""A process that trains for the suites `startup` and `ranks`, alone or as one of those that torchrun started:
``python -m fast_train.benchmarks.throughput.child CONFIG.json [SECONDS]``.

It does what `fast-train` does with its loader and its step, imports, compilation and capture included; a run's folder
and evaluations are left out. The first rank's last line is JSON: without SECONDS ``done_at``, when the first step was
done, in seconds since 1970, and ``seconds``, which went by until then, by name; with them ``rate``,
training images a second of all ranks together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_train.common.command import end_process
from fast_train.common.phases import phase, seconds_by_phase
from fast_train.common.startup import quick_imports

if TYPE_CHECKING:
    from fast_train.pipeline.engine.trainer import Trainer
    from fast_train.pipeline.loaders import AnyBatch
    from fast_train.pipeline.ranks import Ranks

_WARM_UP_STEPS = 20


def main(arguments: list[str] | None = None) -> None:
    """Read the configuration (`Config.to_dict` as JSON) and train one step, or for some seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m fast_train.benchmarks.throughput.child", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="a run's settings, as it keeps them")
    parser.add_argument("seconds", type=float, nargs="?", metavar="SECONDS", help="to train for, after some warm-up")
    flags = parser.parse_args(arguments)
    # In the way of `pipeline.cli`, and with all that it imports before it trains.
    with quick_imports():
        from fast_train.data_prep.manifest import PreparedSet
        from fast_train.pipeline.config.settings import Config
        from fast_train.pipeline.engine.build import ready_step
        from fast_train.pipeline.engine.runtime import running
        from fast_train.pipeline.engine.trainer import Trainer
        from fast_train.pipeline.ranks import joined
        from fast_train.pipeline.report import progress, summary  # noqa: F401

    config = Config.from_dict(json.loads(flags.config.read_text(encoding="utf-8")))
    prepared = PreparedSet.open(config.data.path)
    with joined() as ranks, running(config.run) as runtime, Trainer(config, prepared, runtime) as trainer:
        trainer.check_memory()
        # As `Trainer.prepare`, which keeps the step to itself: a training would go on to the end of an epoch.
        ready = ready_step(trainer.step, trainer.loader.example(), trainer.runtime)
        if flags.seconds is None:
            with phase("first step"):
                _seconds(trainer, ready, 1)
            said: dict[str, Any] = {"done_at": time.time(), "seconds": {**seconds_by_phase()}}
        else:
            said = {"rate": config.data.batch_size * _steps_a_second(trainer, ready, ranks, flags.seconds)}
        if ranks.first:
            print(json.dumps(said), flush=True)


def _steps_a_second(trainer: Trainer, ready: Callable[[AnyBatch], None], ranks: Ranks, seconds: float) -> float:
    first = _seconds(trainer, ready, _WARM_UP_STEPS) / _WARM_UP_STEPS
    # As many on all ranks.
    steps = ranks.highest(max(int(seconds / first), 1)) or 1
    return steps / _seconds(trainer, ready, steps)


def _seconds(trainer: Trainer, ready: Callable[[AnyBatch], None], steps: int) -> float:
    """How long so many steps take."""
    done, epoch = 0, 0
    trainer.step.metrics.read()
    began = time.perf_counter()
    while done < steps:
        trainer.loader.set_epoch(epoch)
        # The numbers first: where they end, no further batch is asked for.
        for _, batch in zip(range(steps - done), trainer.loader.feed(), strict=False):
            ready(batch)
            done += 1
        epoch += 1
    # Reading the sums waits for the device, and for the other ranks.
    trainer.step.metrics.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
    # As fast-train ends.
    end_process(0)
