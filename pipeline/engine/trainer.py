"""The training loop: epochs of steps, an evaluation after each, checkpoints on the way. Listeners get the figures."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fast_train.common.cores import usable_cores
from fast_train.common.phases import phase
from fast_train.common.signals import Interrupt
from fast_train.common.text import show_path
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import override
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.build import (
    build_augmenter,
    build_split_loader,
    build_step,
    check_batch,
    ready_steps,
    trained_shapes,
)
from fast_train.pipeline.engine.evaluate import Evaluation, evaluate
from fast_train.pipeline.engine.history import is_over, out_of_patience, stale
from fast_train.pipeline.engine.identity import identity
from fast_train.pipeline.engine.listener import Listener, Ready, loading, note, warn
from fast_train.pipeline.engine.memory import check_memory
from fast_train.pipeline.engine.metrics import Glimpse, Totals
from fast_train.pipeline.engine.runtime import Runtime
from fast_train.pipeline.engine.saving import Checkpoints
from fast_train.pipeline.engine.stopping import Requests
from fast_train.pipeline.engine.threads import TunedStep
from fast_train.pipeline.errors import CompileError, LoadingError, TrainingDiverged
from fast_train.pipeline.loaders import AnyBatch, Loader
from fast_train.pipeline.optim.schedules import build_schedule
from fast_train.pipeline.ranks import current

# Steps after which ranks hear of each other: a step on a GPU is short, and no host is to wait for another one.
_LAG = {"cpu": 1, "mps": 1, "cuda": 16}
_REMEDY = "begin anew with a lower --lr or with --grad-clip 1; the last good checkpoint, if any, is kept"


class Trainer:
    """One run. Builds everything that it needs; a context manager, which closes the loaders. After it come
    `load_state_dict` of a run that goes on, `prepare`, and `fit`, which trains.

    Raises ValueError where network, loader or images do not fit together, and OSError where a file can't be read.
    resumes: `load_state_dict` will be called, so that nothing is initialised from the data. weights: see
    `build_network`.
    """

    def __init__(
        self,
        config: Config,
        prepared: PreparedSet,
        runtime: Runtime,
        *,
        resumes: bool = False,
        weights: Mapping[str, torch.Tensor] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.prepared, self.runtime, self._weights = prepared, runtime, weights
        progress = partial(loading, listeners)
        self.loader = build_split_loader(config, prepared, runtime, train=True, progress=progress)
        self.test_loader = build_split_loader(config, prepared, runtime, train=False, progress=progress)
        self.augmenter = build_augmenter(config, prepared, runtime, train=True)
        self.test_augmenter = build_augmenter(config, prepared, runtime, train=False)
        start = None if resumes else prepared
        self.step = build_step(config, self.augmenter, runtime, prepared=start, weights=weights)
        check_batch(self.step.model, config, prepared)
        self._begin(config)

    def _begin(self, config: Config) -> None:
        self.config = config
        steps_per_epoch = len(self.loader)
        self.total_steps = config.run.total_steps(steps_per_epoch)
        self.epochs = config.run.epochs_begun(steps_per_epoch)
        self.schedule = build_schedule(config.schedule, peak=config.optimizer.lr, total_steps=self.total_steps)
        self.done_steps = 0
        self.train_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        # By the size of the images, until `prepare` all the same one.
        self._run_steps: dict[int, Callable[[AnyBatch], None]] = dict.fromkeys(self.augmenter.sizes, self.step)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.loader.close()
        self.test_loader.close()

    @property
    def finished(self) -> bool:
        """Whether the last epoch, with its evaluation, is behind us."""
        return is_over(self.config.run, self.history, self.done_steps, len(self.loader))

    def check_memory(self) -> None:
        """ConfigError where a step is to run eagerly on the CPU and can't fit into the memory that is free."""
        if self.runtime.device.type == "cpu" and not self.runtime.compile:
            largest = trained_shapes(self.config, self.prepared.manifest)[-1]
            here = self.config.data.batch_size // current().size * current().local_size
            share = self.config.trained_images / self.config.data.batch_size
            check_memory(self.step.model, largest, here, self.runtime.amp, share=share)
            if self.step.proxy:
                check_memory(self.step.proxy.model, largest, here, self.runtime.amp)

    def prepare(self, listeners: Sequence[Listener] = ()) -> Ready:
        """Compile and capture the step, so that the first epoch is as fast as the others. Listeners get only notes."""
        started = time.perf_counter()
        self._make_ready(listeners)
        if self.runtime.threads is None:
            for size, step in self._run_steps.items():
                self._run_steps[size] = TunedStep(step, most=usable_cores(), say=partial(note, listeners))
        return Ready(
            epochs=self.epochs,
            total_steps=self.total_steps,
            done_steps=self.done_steps,
            history=self.history,
            seconds=time.perf_counter() - started,
            compiled=self.runtime.compile or self.runtime.graph or bool(self.config.crop.sizes),
        )

    def _make_ready(self, listeners: Sequence[Listener]) -> None:
        """Where the step can't be compiled, and that was not asked for, it runs as it is."""
        sizes = {self._size(epoch) for epoch in range(len(self.history), self.epochs)}
        make_ready = partial(ready_steps, self.step, self.loader.example(), augmenter=self.augmenter, sizes=sizes)
        try:
            self._run_steps = make_ready(self.runtime)
        except CompileError as error:
            if self.config.run.compile:
                raise
            warn(listeners, f"{error}, as this run does by itself")
            self.step.leave_uncompiled()
            self.runtime = dataclasses.replace(self.runtime, compile=False)
            self._run_steps = make_ready(self.runtime)

    def _size(self, epoch: int) -> int:
        """Of the images of an epoch: each size has an equal part of the run; the last ones, where it has few epochs."""
        sizes = self.augmenter.sizes[-self.epochs :]
        return sizes[epoch * len(sizes) // self.epochs]

    def restart(self, seed: int) -> None:
        """Begin anew from another seed, as a new Trainer would: what is compiled stays, `prepare` only captures it."""
        config = override(self.config, {"run": {"seed": seed}})
        plain = dataclasses.replace(self.runtime, compile=False, graph=False)
        # A captured step holds the split that it gathers from; there may be no room for two.
        self._run_steps = {}
        self.loader.close()
        self.loader = build_split_loader(config, self.prepared, self.runtime, train=True)
        self.augmenter.seed = seed
        fresh = build_step(config, self.augmenter, plain, prepared=self.prepared, weights=self._weights)
        self.step.load_state_dict(fresh.state_dict())
        self._begin(config)

    def fit(
        self, folder: Path, listeners: Sequence[Listener] = (), *, stop_after: int | None = None
    ) -> tuple[Evaluation | None, int | None]:
        """Train to the end, to the target accuracy, to a signal, or to the end of epoch ``stop_after`` (1-based).
        Returns the last evaluation, or None and the number of the signal that ended it.

        folder: of the checkpoints. Raises TrainingDiverged when a loss or a weight is no finite number, and
        PreparedSetError where the set's files were written to; the last checkpoint is then left as it was. Raises
        OSError where the last one can't be written.
        """
        evaluation = None
        checkpoints = Checkpoints(folder, self.config.run, self.done_steps, partial(warn, listeners))
        with Interrupt() as interrupt, self._kept_where_loading_fails(folder, checkpoints):
            requests = Requests(interrupt, lag=_LAG[self.runtime.device.type])
            while not self.finished and (stop_after is None or len(self.history) < stop_after):
                epoch = len(self.history)
                record = self._train_epoch(epoch, listeners, requests, checkpoints)
                if requests.signum is not None:
                    break
                evaluation = requests.unless_stopped(partial(self._evaluate_epoch, epoch))
                if requests.signum is not None and evaluation is None:
                    break
                if evaluation:
                    record |= {
                        f"{evaluation.split}_loss": evaluation.loss,
                        f"{evaluation.split}_accuracy": evaluation.accuracy,
                    }
                # An epoch that the run's length in steps cut off is not over: a longer run goes on inside of it.
                if self.done_steps % len(self.loader) == 0:
                    self.schedule.epoch_end(record["train_loss"])
                    self.step.metrics.reset()
                self.history.append(record)
                for listener in listeners:
                    listener.on_epoch_end(record)
                if out_of_patience(self.config.run, self.history):
                    note(listeners, f"no better accuracy for {self.config.run.patience} evaluations: the run ends here")
                if self.config.run.keeps_best and evaluation and stale(self.history) == 0:
                    checkpoints.save_best(self.state_dict())
                if self.finished or epoch + 1 == stop_after:
                    break
                requests.between_steps(due=checkpoints.due(self.done_steps, epoch_end=True))
                if requests.take_save():
                    checkpoints.save(self.state_dict())
            requests.end()
            # Inside of the block: a signal meanwhile must not cost the run.
            checkpoints.save(self.state_dict(), final=True)
        if requests.signum is not None and not self.finished:
            return None, requests.signum
        return evaluation, None

    @contextmanager
    def _kept_where_loading_fails(self, folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
        """Save what was trained in the block where it ends by LoadingError, which then says so. Other ranks may be
        inside of a step: of several, none saves."""
        began = self.done_steps
        try:
            yield
        except LoadingError as error:
            if self.done_steps == began or current().size > 1:
                raise
            checkpoints.save(self.state_dict(), final=True)
            raise LoadingError(f"{error}; the run is saved, --resume {show_path(folder)} goes on") from error

    @phase("training")
    def _train_epoch(
        self, epoch: int, listeners: Sequence[Listener], requests: Requests, checkpoints: Checkpoints
    ) -> dict[str, Any]:
        """Train through what is left of an epoch; its record, which no evaluation is in yet."""
        if self.loader.epoch != epoch:
            self.loader.set_epoch(epoch)
        self.augmenter.set_epoch(epoch)
        self.augmenter.set_size(self._size(epoch))
        self.step.model.train()
        already = self.step.metrics.read().images
        left = (self.total_steps - self.done_steps) * self.config.trained_images
        for listener in listeners:
            listener.on_epoch_begin(epoch + 1, already=already, images_left=left + already)
        started = time.perf_counter()
        if self.done_steps < self.total_steps and requests.signum is None:
            started = self._train_steps(started, epoch, listeners, requests, checkpoints)
        sums = self.step.metrics.read()
        seconds = time.perf_counter() - started
        self.train_seconds += seconds
        self._check_finite(sums, epoch)
        trained = sums.images - already
        return {
            "epoch": epoch + 1,
            "step": self.done_steps,
            # A signal may have come before the first step, or between the last one and the evaluation.
            "lr": self.schedule.rate(max(self.done_steps - 1, 0)),
            "train_loss": sums.loss / max(sums.images, 1),
            "train_accuracy": sums.correct / max(sums.images, 1),
            f"{self.test_loader.split}_loss": None,
            f"{self.test_loader.split}_accuracy": None,
            "images_per_second": trained / seconds if trained else None,
            "seconds": seconds,
            "train_seconds": self.train_seconds,
            "synthetic": self.prepared.synthetic,
        }

    def _train_steps(
        self,
        started: float,
        epoch: int,
        listeners: Sequence[Listener],
        requests: Requests,
        checkpoints: Checkpoints,
    ) -> float:
        """The steps that are left of an epoch, to a signal at most; when it started, without the time to save."""
        run_step = self._run_steps[self._size(epoch)]
        glimpse = Glimpse(self.step.metrics.sums)
        for batch in requests.batches(self.loader.feed()):
            rate = self.schedule.rate(self.done_steps)
            self.step.set_rate(rate, epochs=self.done_steps / len(self.loader))
            run_step(batch)
            self.done_steps += 1
            self.step.after(self.done_steps, self.total_steps)
            seen = glimpse.take()
            if seen is not None:
                self._check_finite(seen, epoch)
                for listener in listeners:
                    listener.on_progress(seen, rate)
            due = checkpoints.due(self.done_steps)
            requests.after_step(due=due and not checkpoints.by_steps)
            if self.done_steps == self.total_steps or requests.signum is not None:
                break
            # What is due after an epoch's last step waits for its evaluation.
            inside = self.done_steps % len(self.loader)
            if inside and (requests.take_save() or (due and checkpoints.by_steps)):
                started += self._save_inside(epoch, started, checkpoints)
        return started

    def _check_finite(self, sums: Totals, epoch: int) -> None:
        if not math.isfinite(sums.loss):
            raise TrainingDiverged(
                f"the loss became {sums.loss} in epoch {epoch + 1} at a learning rate of "
                f"{self.schedule.rate(self.done_steps - 1):.4g}; {_REMEDY}"
            )

    def _check_weights(self) -> None:
        if not self.step.is_finite():
            raise TrainingDiverged(f"a weight became infinite or no number by step {self.done_steps:,}; {_REMEDY}")

    def _evaluate_epoch(self, epoch: int, stopped: Callable[[], bool]) -> Evaluation | None:
        last = self.done_steps >= self.total_steps
        if not last and (epoch + 1) % self.config.run.eval_every:
            return None
        self._check_weights()
        result = self.evaluate(stopped)
        if not math.isfinite(result.loss):
            images = f"the {result.split} images"
            raise TrainingDiverged(f"the loss of {images} became {result.loss} in epoch {epoch + 1}; {_REMEDY}")
        return result

    def evaluate(self, stopped: Callable[[], bool] = lambda: False) -> Evaluation:
        """Evaluate the present weights (the averaged ones where there are any) on the split that judges them. stopped:
        see `evaluate`."""
        return self._evaluate(self.test_loader, stopped)

    def _evaluate(self, loader: Loader, stopped: Callable[[], bool] = lambda: False) -> Evaluation:
        return evaluate(
            self.step.evaluated_model,
            loader,
            self.test_augmenter,
            amp=self.runtime.amp,
            tta=self.config.run.tta,
            tta_share=self.config.run.tta_share,
            stopped=stopped,
        )

    def final_test(self, best: Mapping[str, Any] | None) -> Evaluation:
        """Evaluate on the test split of a set that is judged by its validation split. best: a checkpoint's state, of
        which the weights are to be evaluated; None for the present ones."""
        if best is not None:
            self.step.load_state_dict(best["step"])
        with build_split_loader(self.config, self.prepared, self.runtime, train=False, split="test") as loader:
            return self._evaluate(loader)

    def _save_inside(self, epoch: int, started: float, checkpoints: Checkpoints) -> float:
        """Save between two steps of an epoch that began at ``started``; the seconds that it took."""
        self._check_finite(self.step.metrics.read(), epoch)
        began = time.perf_counter()
        checkpoints.save({**self.state_dict(), "train_seconds": self.train_seconds + began - started})
        return time.perf_counter() - began

    def state_dict(self) -> dict[str, Any]:
        """All that the continuation needs; TrainingDiverged where a weight is no finite number, PreparedSetError where
        the images were not the set's."""
        self._check_weights()
        for loader in (self.loader, self.test_loader):
            loader.check_unchanged()
        cuda = torch.cuda.get_rng_state(self.runtime.device) if self.runtime.device.type == "cuda" else None
        return {
            "config": self.config.to_dict(),
            "data": identity(self.prepared),
            "classes": list(self.prepared.manifest.classes),
            "mean": list(self.prepared.manifest.mean),
            "std": list(self.prepared.manifest.std),
            "reading": self.prepared.manifest.source.get("reading", {}),
            "keeping": self.prepared.manifest.source.get("keeping", {}),
            "step": self.step.state_dict(),
            # A batch that a signal came with may be given out, and was not trained on.
            "loader": {**self.loader.state_dict(), "step": self.done_steps - self.loader.epoch * len(self.loader)},
            "schedule": self.schedule.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "ranks": current().size,
            "done_steps": self.done_steps,
            "train_seconds": self.train_seconds,
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step.load_state_dict(state["step"])
        self.loader.load_state_dict(state["loader"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if state["rng"]["cuda"] is not None and self.runtime.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.runtime.device)
        self.done_steps, self.train_seconds = state["done_steps"], state["train_seconds"]
        self.history = state["history"]
        # A run of so many steps that ended inside an epoch and is now made longer: that epoch is not over.
        inside = self.done_steps % len(self.loader) and len(self.history) > self.loader.epoch
        if inside and self.done_steps < self.total_steps:
            self.history.pop()
