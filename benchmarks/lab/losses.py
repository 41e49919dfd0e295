"""Does an option change the training? Its losses beside the plain step's, from several seeds."""

from __future__ import annotations

import dataclasses
import gc
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fast_train.benchmarks.lab.options import Built
from fast_train.kernels.order import epoch_order
from fast_train.pipeline.engine.build import build_step
from fast_train.pipeline.loaders import AnyBatch
from fast_train.pipeline.optim.schedules import build_schedule

# What is compared: the mean loss over this part of the steps, at their end.
_END = 0.25


def train(built: Built, *, seed: int, steps: int) -> list[float]:
    """The mean loss of each of ``steps`` training steps from the weights and in the order of ``seed``.

    By the run's own schedule, shortened. The step is as before when it returns. The host reads nothing meanwhile.
    """
    step, size = built.step, len(built.batch.indices)
    schedule = build_schedule(built.config.schedule, peak=built.config.optimizer.lr, total_steps=steps)
    run = dataclasses.replace(built.config.run, seed=seed)
    plain = dataclasses.replace(built.runtime, compile=False, graph=False)
    fresh = build_step(dataclasses.replace(built.config, run=run), step.augmenter, plain)
    sums = torch.zeros(steps + 1, dtype=torch.float64, device=step.device)
    with step.unchanged():
        step.load_state_dict(fresh.state_dict())
        del fresh
        # A step refers to itself.
        gc.collect()
        step.model.train()
        for number, (epoch, batch) in enumerate(_batches(built, seed, size, steps)):
            step.augmenter.set_epoch(epoch)
            step.set_rate(schedule.rate(number))
            built.ready(batch)
            sums[number + 1].copy_(step.metrics.sums[0])
        return (sums.diff() / size).tolist()


def _batches(built: Built, seed: int, size: int, steps: int) -> list[tuple[int, AnyBatch]]:
    count = len(built.batch.labels)
    per_epoch = count // size
    orders: list[Tensor] = [
        epoch_order(count, seed=seed, epoch=epoch, device=built.step.device) for epoch in range(-(-steps // per_epoch))
    ]
    return [
        (epoch, built.batch._replace(indices=orders[epoch][place * size : (place + 1) * size]))
        for epoch, place in (divmod(number, per_epoch) for number in range(steps))
    ]


def end(losses: list[float]) -> float:
    """The mean over the last steps."""
    last = losses[-max(int(_END * len(losses)), 1) :]
    return sum(last) / len(last)


def compare(plain: dict[int, list[float]], options: dict[str, list[float]]) -> dict[str, Any]:
    """Judge by the losses' end. plain: losses of the plain step by seed, two seeds at least. options: losses of the
    same steps with each option, of the first of these seeds.

    noise: the largest difference between two seeds. An option is within it, or its difference is more than chance.
    """
    first = next(iter(plain.values()))
    noise = max(abs(end(a) - end(b)) for a, b in combinations(plain.values(), 2))
    differences = {name: abs(end(losses) - end(first)) for name, losses in options.items()}
    return {
        "steps": len(first),
        "seeds": list(plain),
        "plain_end": {str(seed): end(losses) for seed, losses in plain.items()},
        "noise": noise,
        "difference": differences,
        "within_noise": {name: difference <= noise for name, difference in differences.items()},
        "losses": {**{f"plain, seed {seed}": losses for seed, losses in plain.items()}, **options},
    }
