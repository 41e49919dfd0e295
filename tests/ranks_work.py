"""What tests/pipeline/test_ranks.py has torchrun start: ``ranks_work.py SET FOLDER CASE ...`` trains each case."""

import dataclasses
import sys
from pathlib import Path

from fast_train.common.startup import quick_imports

with quick_imports():
    import numpy as np
    import torch

    import fast_train
    from fast_train.pipeline.engine.step import TrainStep
    from fast_train.pipeline.ranks import joined

# Batches of 24 of 120 images: 5 steps an epoch. A learning rate that depends on the step alone, so that a shorter run
# is the beginning of a longer one. Nothing has a kink: of ReLU's, a sum in another order may cross it.
COMMON = {
    "arch": "resnet8",
    "activation": "elu",
    "batch_size": 24,
    "device": "cpu",
    "deterministic": True,
    "threads": 1,
    "amp": "off",
    "schedule": {"name": "constant", "warmup": 0.0},
    "optimizer": {"name": "sgd", "lr": 0.05},
}
CASES = {
    "sgd": {
        "sync_batchnorm": True,
        "steps": 8,
        "optimizer": {"name": "sgd", "lr": 0.05, "grad_clip": 1.0, "ema_decay": 0.9},
    },
    "muon": {"sync_batchnorm": True, "steps": 8, "optimizer": {"name": "muon", "lr": 0.02, "lookahead": 3}},
    "local": {"steps": 8},
    "first": {"steps": 3},
    "compiled": {"sync_batchnorm": True, "steps": 3, "compile": True},
    "shards": {"steps": 8, "shard_resident": True},
}


def train(prepared, folder, name, **more):
    """Train a case, or go on with it."""
    given = {**COMMON, **CASES[name.partition("-")[0]], **more}
    outcome = fast_train.train(prepared, recipe="fast", out=folder / name, **given)
    return dataclasses.asdict(outcome.evaluation)


def note_states(states):
    """Have each step leave what it changed."""
    call = TrainStep.__call__

    def noted(self, batch):
        call(self, batch)
        held = [tensor for tensor in self.tensors() if tensor is not self.metrics.sums]
        states.append(torch.cat([tensor.double().flatten() for tensor in held]))

    TrainStep.__call__ = noted


def main(prepared, folder, *names):
    states = []
    note_states(states)
    for name in names:
        name, _, resumed = name.partition("+")
        more = {"resume": "auto", "steps": 8} if resumed else {}
        found = train(prepared, folder, name, **more)
        with joined() as ranks:
            np.savez(folder / f"{name}-{ranks.rank}.npz", **found)
            # The whole state of each rank after each step.
            seen = torch.stack(states)
            assert ranks.size != 2 or torch.equal(ranks.sum(seen), 2 * seen), f"{name}: the ranks' states differ"
        states.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
