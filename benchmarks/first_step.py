"""A process that makes one training step and says when it was done: ``python -m benchmarks.first_step CONFIG.json``.

It does what `fast-train` does up to there, compilation and capture included. The last line it prints is JSON:
``done_at``, seconds since 1970.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(path: str) -> None:
    """Read the configuration (`Config.to_dict` as JSON) and train one step."""
    from data_prep.manifest import PreparedSet
    from pipeline.config import Config
    from pipeline.runtime import apply_global_flags, resolve_runtime
    from pipeline.train import build_augmenter, build_split_loader, build_step, ready_step

    config = Config.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    prepared = PreparedSet.open(config.data.path)
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    with build_split_loader(config, prepared, runtime, train=True) as loader:
        augmenter = build_augmenter(config, prepared, runtime, train=True)
        step = build_step(config, augmenter, runtime, gathers=loader.gathers)
        ready = ready_step(step, loader.example(), runtime)
        ready(next(loader.feed()))
        # Reading the sums waits for the device.
        step.metrics.read()
        print(json.dumps({"done_at": time.time()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
