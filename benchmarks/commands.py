"""What `bench-throughput` does; `benchmarks.cli` parses and calls."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import re
import shlex
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from benchmarks.bench import Bench, Settings
from benchmarks.cli import names_in
from benchmarks.compare import compare, describe
from benchmarks.machine import Watch, fingerprint
from benchmarks.measure import FAILURES
from benchmarks.mllog import log_lines
from benchmarks.report import JSON, device_of, write_report
from benchmarks.result import Result, read_result
from benchmarks.sizes import fit_batch
from benchmarks.suites import NEEDS, SUITES
from data_prep.display import Display
from data_prep.errors import one_line
from data_prep.manifest import PreparedSet
from pipeline.cli import show_path
from pipeline.commands import default_recipe, fit_to_data
from pipeline.config import Config
from pipeline.errors import check_name
from pipeline.recipe import resolve
from pipeline.runtime import apply_global_flags, device_name, resolve_runtime

SPREAD_LIMIT = 0.05
_NAMED_ROWS = 5


def compare_reports(flags: argparse.Namespace) -> int:
    """Print the ratios; 1 where a row lost more than ``--max-loss``."""
    if not 0 <= flags.max_loss < 1:
        raise ValueError(f"--max-loss {flags.max_loss} is no fraction in [0, 1)")
    comparison = compare(*map(read_result, flags.compare))
    print("\n".join(describe(comparison, flags.max_loss)))
    return 1 if comparison.losses(flags.max_loss) else 0


def measure(flags: argparse.Namespace, command: Sequence[str]) -> int:
    """Measure, write the report, say where it is."""
    chosen = choose_suites(flags.only, flags.skip)
    display = Display()
    # Part of the notes' recipe: four workers, whatever the cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory(prefix="bench-throughput-") as scratch:
        bench = build_bench(flags, command, display, Path(scratch))
        folder = _folder(flags.out, bench)
        display.say(f"{bench.config.model.arch} by recipe {bench.config.recipe}; {bench.runtime.describe()}")
        display.say(f"report folder: {show_path(folder)}")
        with _termination_as_interrupt() as signalled:
            interrupted = _run_suites(bench, chosen)
    result = bench.result
    if interrupted and not result.rows:
        raise KeyboardInterrupt
    result.machine["watch"] = bench.watch.record()
    result.warnings += [*bench.watch.warnings(), *spread_warnings(result)]
    mllog = "\n".join(log_lines(result)) + "\n" if flags.mllog else None
    write_report(folder, result, mllog=mllog)
    _say_outcome(display, result, folder)
    if interrupted:
        return 128 + (signalled[0] if signalled else signal.SIGINT)
    return 1 if bench.impossible else 0


def choose_suites(only: str, skip: str) -> list[str]:
    """The suites to run, in their order; ValueError for unknown names or none left."""
    kept, left_out = names_in(only), names_in(skip)
    for name in kept + left_out:
        check_name("suite", name, SUITES)
    wanted = {name for name in SUITES if (not kept or name in kept) and name not in left_out}
    if not wanted:
        raise ValueError("--only and --skip leave no suite; name one that is not skipped")
    needed = {NEEDS[name] for name in wanted if name in NEEDS}
    return [name for name in SUITES if name in wanted | needed]


def build_bench(flags: argparse.Namespace, command: Sequence[str], display: Display, scratch: Path) -> Bench:
    """Everything that suites need. ConfigError or PreparedSetError for what can't be measured."""
    given: dict[str, Any] = {"data": {"path": flags.data}}
    if flags.device:
        given["run"] = {"device": flags.device}
    if flags.arch:
        given["model"] = {"arch": flags.arch}
    config = resolve(flags.recipe or default_recipe(given), given)
    given["model"] = {"arch": config.model.arch}
    notes = resolve("notes", given)
    prepared = PreparedSet.open(flags.data)
    config, notes = (fit_to_data(c, prepared, Console(quiet=True)) for c in (config, notes))
    # A step is measured alone on the resident split, whatever loader the recipe names.
    config, notes = (
        dataclasses.replace(c, data=dataclasses.replace(c.data, loader="resident")) for c in (config, notes)
    )
    runtime = resolve_runtime(config.run)
    apply_global_flags(config.run, runtime.device)
    cuda = runtime.device.type == "cuda"
    recipe, full = config, (config, notes)
    if not cuda:
        config, notes = map(fit_batch, full)
    settings = build_settings(flags, config, cuda=cuda)
    result = Result(
        settings={**dataclasses.asdict(settings), "command": shlex.join(command), "started_at": time.time()},
        config=config.to_dict(),
        data=_describe(prepared),
        machine=fingerprint(runtime.device),
    )
    for before, now in zip(full, (config, notes), strict=True):
        if now != before:
            result.warnings.append(
                f"steps of recipe {now.recipe} take {now.data.batch_size} images in place of {before.data.batch_size}: "
                f"a CPU takes long over {now.model.arch}"
            )
    return Bench(
        prepared=prepared,
        recipe=recipe,
        config=config,
        notes=notes,
        runtime=runtime,
        notes_runtime=resolve_runtime(notes.run),
        settings=settings,
        result=result,
        display=display,
        watch=Watch(runtime.device),
        scratch=scratch,
    )


def build_settings(flags: argparse.Namespace, config: Config, *, cuda: bool) -> Settings:
    """How much to measure: on a CPU less of it, so that two cores end within ten minutes."""
    cores, quick, main = os.cpu_count() or 1, flags.quick, config.data.batch_size
    repeats = flags.repeats if flags.repeats is not None else (2 if quick else 5)
    runs = flags.runs if flags.runs is not None else (5 if cuda else 2)
    workers = cores if flags.workers is None else flags.workers
    if workers < 1:
        raise ValueError(f"--workers {workers} is too few; give 1 or more")
    return Settings(
        repeats=repeats,
        warm_up=flags.warm_up,
        seconds=0.1 if quick else 0.5 if cuda else 0.3,
        quick=quick,
        scaling=not quick,
        batch_sizes=tuple(sorted({128, main, 2048} if cuda else {main, 1024})),
        worker_counts=tuple(sorted({*(1 << k for k in range(workers.bit_length())), workers})),
        workers=workers,
        slow_repeats=repeats if cuda or flags.repeats is not None else min(repeats, 2),
        target_accuracy=flags.target_accuracy,
        runs=runs,
        epochs=flags.epochs if flags.epochs is not None else (None if cuda else 2),
        accuracy_asked=bool({flags.target_accuracy, flags.runs, flags.epochs} - {None}) or "accuracy" in flags.only,
        prep_dataset=flags.prep_dataset,
    )


def _describe(prepared: PreparedSet) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "source": prepared.source_name,
        "synthetic": prepared.synthetic,
        "classes": len(manifest.classes),
        "image_shape": list(manifest.image_shape),
        "train_images": prepared.size("train"),
        "test_images": prepared.size("test") if "test" in prepared.splits else 0,
        "formats": list(dict.fromkeys(entry.format for entry in manifest.files)),
        "files": {entry.path: entry.sha256 for entry in manifest.files},
    }


def _folder(out: Path | None, bench: Bench) -> Path:
    """``--out``, or a free ``reports/<network>-<device>``; ValueError where a report is there already."""
    if out is not None:
        if (out / JSON).exists() or (out.exists() and not out.is_dir()):
            raise ValueError(f"{out} holds a report already, or is a file; give another --out")
        return out
    device = device_name(bench.device) if bench.device.type == "cuda" else "cpu"
    name = f"{bench.config.model.arch}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"
    folder, number = Path("reports") / name, 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def _run_suites(bench: Bench, chosen: Sequence[str]) -> bool:
    """Run them in turn; True where a signal ended it. What an unfinished suite had measured is left out."""
    for name in SUITES:
        if name not in chosen:
            bench.skip(name, "the suite", "left out by --only or --skip")
    for place, name in enumerate(chosen):
        done, started = len(bench.result.rows), time.monotonic()
        bench.display.say(f"{name} ...")
        try:
            SUITES[name](bench)
        except KeyboardInterrupt:
            del bench.result.rows[done:]
            bench.result.complete = False
            for left in chosen[place:]:
                bench.skip(left, "the suite", "interrupted before it was finished")
            return True
        except FAILURES as error:
            # The figures of half an hour must not be lost with one suite.
            reason = f"failed: {one_line(error)}"
            bench.impossible.append(reason)
            bench.result.warnings.append(f"{name} {reason}")
            bench.skip(name, "the rest of the suite", reason)
        finally:
            clean_up(bench.device)
        bench.display.say(f"{name}: {len(bench.result.rows) - done} rows in {time.monotonic() - started:.0f} s")
    return False


def clean_up(device: torch.device) -> None:
    """Compiled code and device memory of a suite do not weigh on the next one."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def _say_outcome(display: Display, result: Result, folder: Path) -> None:
    for warning in result.warnings:
        display.say(f"warning: {warning}")
    if not result.complete:
        display.say("interrupted: the report holds the suites that were finished, and says so")
    display.say(f"{len(result.rows)} rows on {device_of(result)}; report: {show_path(folder / 'report.html')}")


@contextmanager
def _termination_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM as KeyboardInterrupt, so that the way out is one; the block gets the list of such signals."""
    seen: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        seen.append(signum)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, previous)
