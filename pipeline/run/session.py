"""A run as a call: train, and evaluate what was trained. Every training of this project takes this one way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fast_train.common.text import show
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import Given, override
from fast_train.pipeline.config.settings import Config, differences
from fast_train.pipeline.engine.build import build_augmenter, build_network, build_split_loader
from fast_train.pipeline.engine.evaluate import Evaluation
from fast_train.pipeline.engine.evaluate import evaluate as evaluate_split
from fast_train.pipeline.engine.history import accuracies, is_over, target_reached
from fast_train.pipeline.engine.identity import identity
from fast_train.pipeline.engine.listener import Listener, Start, warn
from fast_train.pipeline.engine.runtime import fix_threads, running
from fast_train.pipeline.engine.trainer import Trainer
from fast_train.pipeline.paths import BEST, checkpoints, run_folder
from fast_train.pipeline.ranks import current
from fast_train.pipeline.run.folder import claim_folder, default_folder
from fast_train.pipeline.run.log import RunLog
from fast_train.pipeline.run.plan import Plan, as_it_began
from fast_train.pipeline.run.record import Resume, Saved, as_trained, check_resumable, fitting, load, write_config
from fast_train.pipeline.run.weights import Weights, no_weights


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended, and where it is.

    evaluation: of the last weights on the test split, or on the validation split of a set without one; of the best ones
    where they are kept and the two splits differ; None where a signal ended the training, or nothing was left to do.
    history: a record an epoch, as metrics.jsonl holds them. interrupted: the signal's number. steps: those that
    were trained now. train_seconds: of training alone, in all and before this call. seconds: of this call, with
    compilation, evaluation and saving. notes: those of its `Start`.
    """

    folder: Path
    config: Config
    prepared: PreparedSet
    evaluation: Evaluation | None
    history: Sequence[Mapping[str, Any]]
    interrupted: int | None
    finished: bool
    target_reached: bool
    steps: int
    train_seconds: float
    train_seconds_before: float
    seconds: float
    notes: Sequence[str]

    @property
    def accuracy(self) -> float | None:
        """The last accuracy, a fraction; None where nothing was evaluated yet."""
        if self.evaluation is not None:
            return self.evaluation.accuracy
        return next(reversed(accuracies(self.history)), None)


def train(
    plan: Plan,
    *,
    folder: Path | None = None,
    resume: Resume = None,
    stop_after: int | None = None,
    listeners: Sequence[Listener] = (),
    given: Given | None = None,
) -> Outcome:
    """Train, and leave a run folder with configuration, metrics and checkpoint.

    plan: of `plan_training`. folder: None for ``runs/<set>-<architecture>-<recipe>``, with a number where that is
    taken. resume: a checkpoint to go on from, whose settings the plan has, or ``auto`` for the last run of the same
    folder if there is one; that keeps the data and the length that it began with, but for what ``given`` says.
    stop_after: save and return after this epoch (1-based).

    Of several ranks (`pipeline.ranks.joined`) the first one holds and writes the folder, and tells the listeners.

    Raises ConfigError for what can't be trained or resumed, TrainingDiverged where a loss or a weight is no finite
    number, and OSError where something can't be read or written. A signal ends it after a whole step, saved.
    """
    ranks = current()
    prepared = plan.prepared
    settings = override(plan.config, {"data": {"path": ""}}).to_dict()
    ranks.check_same([identity(prepared), settings], "settings or images")
    with ExitStack() as held:
        begin = partial(_begin, plan, folder, resume, given or {}, held)
        folder, saved, config, notes = ranks.of_first(begin)
        if saved is not None:
            prepared = as_trained(prepared, saved)
        with Session(config, prepared, plan.weights) as session:
            return session.train(folder, saved=saved, notes=notes, stop_after=stop_after, listeners=listeners)


def _begin(
    plan: Plan, folder: Path | None, resume: Resume, given: Given, held: ExitStack
) -> tuple[Path, Saved | None, Config, tuple[str, ...]]:
    """The folder, held; what it goes on from, which fits; the settings; and what there is to say, a line each."""
    config, prepared, notes = plan.config, plan.prepared, plan.notes
    folder = claim_folder(default_folder(config, prepared), resume, folder, held)
    saved = resume if isinstance(resume, Saved) else None
    if resume == "auto" and checkpoints(folder):
        saved = load(folder)
        as_begun = as_it_began(config, saved, prepared, given)
        config, notes = as_begun.config, (*notes, *as_begun.notes)
    if saved is None and config.model.weights is not None:
        if plan.weights is None:
            raise no_weights(Path(config.model.weights))
        notes = (*notes, *plan.weights.notes, plan.weights.note(config.model, prepared.manifest.classes))
        config = override(config, {"model": {"weights_sha256": plan.weights.sha256}})
    if saved is not None:
        check_resumable(saved, config, prepared, given)
        notes = (*saved.notes, *notes, *_ranks_note(saved))
        for section, name, was, now in differences(saved.config, config):
            # Data that lie elsewhere change nothing.
            if (section, name) != ("data", "path"):
                notes = (*notes, show(f"note: {section}.{name} was {was} so far, is {now} from here on"))
    return folder, saved, config, notes


def _ranks_note(saved: Saved) -> Iterator[str]:
    before, now = saved.state.get("ranks", 1), current().size
    if before != now:
        parts = "" if saved.config.run.sync_batchnorm else ", and BatchNorm has other parts of a batch"
        yield (
            f"note: the run had {before} rank{'s'[: before != 1]} so far, has {now} from here on: the same batches, "
            f"whose gradients are summed in another order{parts}"
        )


class Session:
    """A network that is built, compiled and captured once, for trainings one after the other; a context manager.

    weights: those that ``config`` names, which new trainings begin with.
    """

    def __init__(self, config: Config, prepared: PreparedSet, weights: Weights | None = None) -> None:
        self._config = dataclasses.replace(config, run=fix_threads(config.run))
        self._prepared, self._weights = prepared, weights
        self._held = ExitStack()
        self._runtime = self._held.enter_context(running(self._config.run))
        self._trainer: Trainer | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def train(
        self,
        folder: Path,
        *,
        seed: int | None = None,
        saved: Saved | None = None,
        notes: Sequence[str] = (),
        stop_after: int | None = None,
        listeners: Sequence[Listener] = (),
    ) -> Outcome:
        """Train into ``folder``, which the caller holds. seed: another one than the configuration's, of a new run.
        saved: a checkpoint to go on from, checked already. notes: for the listeners."""
        started = time.perf_counter()
        with RunLog(partial(warn, listeners)) as log:
            listeners = (log, *listeners) if current().first else ()
            config = override(self._config, {} if seed is None else {"run": {"seed": seed}})
            start = Start(
                config=config,
                prepared=self._prepared,
                runtime=self._runtime,
                folder=folder,
                resumed=saved is not None,
                notes=(*notes, *self._runtime.notes()),
            )
            for listener in listeners:
                listener.on_start(start)
            if saved is not None and self._is_over(saved):
                return _nothing_to_do(start, saved, time.perf_counter() - started)
            trainer = self._ready_trainer(config, saved, listeners)
            before, steps_before = trainer.train_seconds, trainer.done_steps
            evaluation, interrupted = self._fit(trainer, folder, listeners, stop_after)
        return Outcome(
            folder=folder,
            config=config,
            prepared=self._prepared,
            evaluation=evaluation,
            history=trainer.history,
            interrupted=interrupted,
            finished=trainer.finished,
            target_reached=target_reached(config.run, trainer.history),
            steps=trainer.done_steps - steps_before,
            train_seconds=trainer.train_seconds,
            train_seconds_before=before,
            seconds=time.perf_counter() - started,
            notes=start.notes,
        )

    def _is_over(self, saved: Saved) -> bool:
        """Whether no step is left, before anything is loaded for one."""
        run, state = self._config.run, saved.state
        steps_per_epoch = self._prepared.size("train") // self._config.data.batch_size
        return is_over(run, state["history"], state["done_steps"], steps_per_epoch)

    def _fit(
        self, trainer: Trainer, folder: Path, listeners: Sequence[Listener], stop_after: int | None
    ) -> tuple[Evaluation | None, int | None]:
        """The last evaluation, or the number of the signal that ended it."""
        ready = trainer.prepare(listeners)
        # A step that can't be compiled leaves no run behind.
        if current().first:
            write_config(folder, trainer.config, self._prepared, trainer.runtime)
        for listener in listeners:
            listener.on_ready(ready)
        evaluation, interrupted = trainer.fit(folder, listeners, stop_after=stop_after)
        if interrupted is None and evaluation is None:
            evaluation = trainer.evaluate()
        if trainer.finished and evaluation and evaluation.split != self._prepared.final_split:
            evaluation = trainer.final_test(current().of_first(partial(self._best, folder, trainer.config)))
        return evaluation, interrupted

    def _best(self, folder: Path, config: Config) -> Mapping[str, Any] | None:
        """The state whose weights the last figure is of; None where that is the present one."""
        return load(folder / BEST).state if tests_best(folder, config, self._prepared) else None

    def _ready_trainer(self, config: Config, saved: Saved | None, listeners: Sequence[Listener]) -> Trainer:
        """A trainer that has trained nothing, or stands where ``saved`` does."""
        if self._trainer is not None:
            self._trainer.restart(config.run.seed)
            return self._trainer
        tensors = None
        if saved is None and self._weights is not None:
            tensors = self._weights.fitted(config.model, self._prepared.manifest.classes)
        trainer = Trainer(
            config, self._prepared, self._runtime, resumes=saved is not None, weights=tensors, listeners=listeners
        )
        self._trainer = self._held.enter_context(trainer)
        trainer.check_memory()
        if saved is not None:
            with fitting(saved.path):
                trainer.load_state_dict(saved.state)
        return trainer


def _nothing_to_do(start: Start, saved: Saved, seconds: float) -> Outcome:
    history, trained = saved.state["history"], saved.state["train_seconds"]
    return Outcome(
        # A new folder, if one was given, holds nothing.
        folder=run_folder(saved.path),
        config=start.config,
        prepared=start.prepared,
        evaluation=None,
        history=history,
        interrupted=None,
        finished=True,
        target_reached=target_reached(start.config.run, history),
        steps=0,
        train_seconds=trained,
        train_seconds_before=trained,
        seconds=seconds,
        notes=start.notes,
    )


def tests_best(folder: Path, config: Config, prepared: PreparedSet) -> bool:
    """Whether the last figure of a training that is over is of its best weights: where they are kept, and were chosen
    by another split than the one that they are tested on."""
    chosen = config.run.keeps_best and prepared.final_split != prepared.evaluated_split
    return chosen and (folder / BEST).is_file()


def tested_checkpoint(folder: Path, config: Config, prepared: PreparedSet) -> Saved:
    """Of a training that is over, the checkpoint whose weights its last figure is of."""
    return load(folder / BEST if tests_best(folder, config, prepared) else folder)


def evaluate(config: Config, prepared: PreparedSet, saved: Saved) -> Evaluation:
    """Evaluate a checkpoint on the test split, or the validation split of a set without one; both from
    `plan_evaluation`. ConfigError where it does not fit."""
    with running(config.run) as runtime:
        model = build_network(config, runtime)
        with fitting(saved.path):
            model.load_state_dict(saved.weights)
        augmenter = build_augmenter(config, prepared, runtime, train=False)
        with build_split_loader(config, prepared, runtime, train=False, split=prepared.final_split) as loader:
            tta, share = config.run.tta, config.run.tta_share
            return evaluate_split(model, loader, augmenter, amp=runtime.amp, tta=tta, tta_share=share)
