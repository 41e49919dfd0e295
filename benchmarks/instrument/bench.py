"""What everything that measures is given: the set, the configurations, how long to measure, and where results go."""

from __future__ import annotations

import dataclasses
import gc
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from fast_train.benchmarks.instrument.cost import fit_batch, in_batches
from fast_train.benchmarks.instrument.flags import BASELINE, Settings, Subject
from fast_train.benchmarks.instrument.folder import report_folder
from fast_train.benchmarks.instrument.machine import Watch, fingerprint
from fast_train.benchmarks.instrument.records import ImpossibleError
from fast_train.benchmarks.instrument.result import D, D_co, Result, Row, Skipped
from fast_train.benchmarks.instrument.timing import FAILURES, Case, Rate, interleave, timed
from fast_train.common.console import Display
from fast_train.common.cores import usable_cores
from fast_train.common.signals import Interrupt, exit_status
from fast_train.common.text import one_line, show_path
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.device import data_device
from fast_train.pipeline.engine.build import build_augmenter, build_split_loader, build_step
from fast_train.pipeline.engine.runtime import Runtime, apply_global_flags, resolve_runtime
from fast_train.pipeline.engine.threads import settle_threads
from fast_train.pipeline.run.plan import check_meant, default_recipe, fit_to_data

SPREAD_LIMIT = 0.05
_NAMED_ROWS = 5

S_co = TypeVar("S_co", bound=Settings, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Measured(Case, Generic[D_co]):
    """A case and what its row says besides the repeats."""

    details: D_co
    unit: str = "images/s"
    better: str = "higher"


@dataclass(kw_only=True)
class Bench(Generic[S_co]):
    """recipe: what fast-train would run. baseline_recipe: the study notes' training, on the same network and set.
    config, baseline: the same, with smaller batches where a CPU would take long over a step. runtime: of ``config``.
    scratch: an empty folder that goes away. debug: show the trace of an error that ends a suite. impossible: why the
    command fails though it wrote a report."""

    prepared: PreparedSet
    recipe: Config
    baseline_recipe: Config
    config: Config
    baseline: Config
    runtime: Runtime
    baseline_runtime: Runtime
    settings: S_co
    result: Result
    display: Display
    watch: Watch
    scratch: Path
    debug: bool = False
    impossible: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def data_device(self) -> torch.device:
        """Where batches lie, and are augmented."""
        return data_device(self.device)

    def rate(self, call: Callable[[], object], *, items: float) -> Rate:
        """A repeat of calls on the device, each of so many items."""
        return Rate(timed(call, self.device), items=items, seconds=self.settings.seconds)

    def skip(self, suite: str, name: str, reason: str) -> None:
        """List what is not measured, and why."""
        self.result.skipped.append(Skipped(suite, name, reason))
        self.display.say(f"  not measured: {suite}, {name}: {reason}")

    def fail(self, suite: str, name: str, error: Exception) -> None:
        """List what an error kept from being measured; the command goes on, and fails at its end."""
        if self.debug:
            traceback.print_exception(error)
        # Where the message was not made to be read alone, with the type: that of a KeyError is a key.
        expected = isinstance(error, FAILURES)
        text = one_line(error) if expected else " ".join("".join(traceback.format_exception_only(error)).split())
        reason = f"failed: {text}"
        self.impossible.append(reason)
        self.result.warnings.append(f"{suite} {reason}")
        self.skip(suite, name, reason)

    def attempt(self, suite: str, rest: str, work: Callable[[], None]) -> None:
        """Measure a suite; an error that ends it costs no other suite its figures. rest: what it then lacks."""
        done, started = len(self.result.rows), time.monotonic()
        self.display.say(f"{suite} ...")
        try:
            try:
                work()
            finally:
                clean_up(self.device)
        except Exception as error:
            # Whatever it is: the figures of half an hour must not be lost with one suite.
            self.fail(suite, rest, error)
        self.display.say(f"{suite}: {len(self.result.rows) - done} rows in {time.monotonic() - started:.0f} s")

    def add(self, row: Row[D]) -> Row[D]:
        self.result.rows.append(row)
        return row

    def amend(self, row: Row[D], details: D) -> None:
        """Give a row other details. If they can't be true, the row goes, the reason is listed, and the command
        fails."""
        place = self.result.rows.index(row)
        try:
            self.result.rows[place] = dataclasses.replace(row, details=details)
        except ImpossibleError as error:
            del self.result.rows[place]
            self.impossible.append(str(error))
            self.result.warnings.append(str(error))
            self.skip(row.suite, row.name, str(error))

    def measure(
        self, suite: str, label: str, cases: Sequence[Measured[D]], *, repeats: int | None = None
    ) -> list[Row[D]]:
        """Measure cases in turn, and add a row for each; one that fails is listed with its reason."""
        repeats = repeats or self.settings.repeats
        total = len(cases) * (repeats + self.settings.warm_up)
        failures: dict[str, str] = {}
        with self.display.progress(label, total) as advance:

            def after_each() -> None:
                self.watch.sample()
                advance(1)

            samples = interleave(
                cases,
                repeats=repeats,
                warm_up=self.settings.warm_up,
                after_each=after_each,
                on_failure=failures.__setitem__,
            )
        for name, reason in failures.items():
            self.skip(suite, name, f"failed: {reason}")
        return [
            self.add(
                Row(
                    suite=suite,
                    name=case.name,
                    unit=case.unit,
                    better=case.better,
                    repeats=samples[case.name].repeats,
                    warm_up=samples[case.name].warm_up,
                    details=case.details,
                )
            )
            for case in cases
            if case.name in samples
        ]


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 in convolutions and matrix products on or off, inside the block or in the function that this decorates.

    torch's default is on in convolutions and off in matrix products."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def build_bench(
    subject: Subject,
    settings: Callable[[Config, bool], S_co],
    *,
    command: Sequence[str],
    display: Display,
    scratch: Path,
) -> Bench[S_co]:
    """Everything that suites need. settings: how to measure, by the configuration and whether it runs on a GPU.
    ConfigError or PreparedSetError for what can't be measured."""
    prepared = PreparedSet.open(Path(subject.data))
    recipe, config, baseline = _configurations(subject, prepared)
    runtime = resolve_runtime(config.run)
    # Before there is any work of our own that the load would count.
    watch = Watch(runtime.device)
    apply_global_flags(config.run, runtime)
    cuda = runtime.device.type == "cuda"
    baseline_recipe = baseline
    if not cuda:
        config, baseline = map(fit_batch, (config, baseline))
    if runtime.threads is None:
        _settle_threads(config, prepared, runtime)
    chosen = settings(config, cuda)
    result = Result(
        settings={**dataclasses.asdict(chosen), "command": shlex.join(command), "started_at": time.time()},
        config=config.to_dict(),
        data=_describe(prepared),
        machine=fingerprint(runtime.device),
    )
    return Bench(
        prepared=prepared,
        recipe=recipe,
        baseline_recipe=baseline_recipe,
        config=config,
        baseline=baseline,
        runtime=runtime,
        baseline_runtime=resolve_runtime(baseline.run),
        settings=chosen,
        result=result,
        display=display,
        watch=watch,
        scratch=scratch,
        debug=subject.debug,
    )


def _configurations(subject: Subject, prepared: PreparedSet) -> Iterator[Config]:
    """The recipe, what its step is measured by, and the baseline, for these images."""
    given = subject.settings()
    changed = subject.over_recipe()
    recipe = resolve(subject.recipe or default_recipe(changed, prepared), changed)
    baseline = resolve(BASELINE, {**given, "model": {"arch": recipe.model.arch}})
    recipe = fit_to_data(recipe, prepared)
    check_meant(changed, recipe)
    config = _of_one_size(recipe)
    for chosen in (recipe, config, _comparable(fit_to_data(baseline, prepared), config)):
        # A step is measured alone on the resident split, whatever loader the recipe names.
        yield dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, loader="resident"))


def _of_one_size(config: Config) -> Config:
    """With crops of the last size alone, where they grow."""
    if not config.crop.sizes:
        return config
    crop = dataclasses.replace(config.crop, size=config.crop.sizes[-1], progressive=())
    return dataclasses.replace(config, crop=crop)


def _comparable(baseline: Config, config: Config) -> Config:
    """The baseline as it is, or on crops those of ``config``, in its batches: it knows none of its own."""
    if not config.crop.sizes:
        return baseline
    stem, side = config.model.stem, config.model.image_size
    model = dataclasses.replace(baseline.model, stem=stem, image_size=side)
    return in_batches(dataclasses.replace(baseline, crop=config.crop, model=model), config.data.batch_size)


def _settle_threads(config: Config, prepared: PreparedSet, runtime: Runtime) -> None:
    """All is measured with the number of threads that is fastest for the recipe's step, which is found before."""
    plain = dataclasses.replace(runtime, compile=False)
    augmenter = build_augmenter(config, prepared, runtime, train=True)
    with build_split_loader(config, prepared, runtime, train=True) as loader:
        settle_threads(build_step(config, augmenter, plain), loader.example(), most=usable_cores())


def _describe(prepared: PreparedSet) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "source": prepared.source_name,
        "synthetic": prepared.synthetic,
        "classes": len(manifest.classes),
        "image_shape": None if manifest.ragged else list(manifest.image_shape),
        "shapes": _shapes(prepared),
        "train_images": prepared.size("train"),
        "test_images": prepared.size(prepared.final_split),
        "formats": list(manifest.formats),
        "files": {entry.path: entry.sha256 for entry in manifest.files},
    }


def _shapes(prepared: PreparedSet) -> dict[str, float] | None:
    """Of training images that keep their own shapes: medians of heights, widths and bytes of a file; None of others."""
    if prepared.manifest.ragged is None:
        return None
    encoded = prepared.encoded("train")
    columns = {"height": encoded.heights, "width": encoded.widths, "file_bytes": np.diff(encoded.offsets)}
    return {name: float(np.median(column)) for name, column in columns.items()}


def measure_and_report(
    bench: Bench[S_co],
    work: Callable[[], None],
    write: Callable[[Path], Sequence[str]],
    *,
    out: Path | None,
    default: Path,
) -> int:
    """Do ``work``, then ``write`` the report; returns the exit status.

    A signal ends the work, and what was measured by then is written: KeyboardInterrupt where that is nothing. One that
    comes while it is written waits. write: returns what to say last. out, default: see `report_folder`.
    """
    result, say, stop = bench.result, bench.display.say, None
    with report_folder(out, default) as folder:
        say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
        say(f"report folder: {show_path(folder)}")
        try:
            work()
        except KeyboardInterrupt as error:
            if not result.rows:
                raise
            stop, result.complete = error, False
            # What the signal left half made in the libraries complains when it is thrown away.
            sys.unraisablehook = lambda _: None
        with Interrupt() as held:
            result.machine["watch"] = bench.watch.record()
            result.warnings += [*bench.watch.warnings(), *spread_warnings(result)]
            last = write(folder)
            for warning in result.warnings:
                say(f"warning: {warning}")
            if stop is not None:
                say("interrupted: the report holds what had been measured by then, and says so")
            for line in last:
                say(line)
            shutil.rmtree(bench.scratch, ignore_errors=True)
    if held.signum is not None:
        return 128 + held.signum
    if stop is not None:
        return exit_status(stop)
    return 1 if bench.impossible else 0


def clean_up(device: torch.device) -> None:
    """Compiled code and device memory of a suite do not weigh on the next one."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def spread_warnings(result: Result) -> list[str]:
    """One line on the rows whose repeats differ by more than a twentieth."""
    wide = sorted((row for row in result.rows if row.spread > SPREAD_LIMIT), key=lambda row: -row.spread)
    if not wide:
        return []
    named = ", ".join(f"{row.suite}: {row.name} ({row.spread:.0%})" for row in wide[:_NAMED_ROWS])
    more = f" and {len(wide) - _NAMED_ROWS} more" if len(wide) > _NAMED_ROWS else ""
    return [
        f"the repeats of {len(wide)} of {len(result.rows)} rows spread over more than {SPREAD_LIMIT:.0%}: "
        f"{named}{more}; trust their intervals, not their medians"
    ]
