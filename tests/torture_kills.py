"""Kill trainings and preparations by SIGKILL at random moments, let them go on, and look whether anything is lost.

python tests/torture_kills.py --count 200 --seed 0

One process imports torch and forks for each training, so that a kill takes about a second. What is to be killed tells
as each of its phases begins and ends, and sets a timer in one of them, for a random part of the time that this phase
takes undisturbed. The timer's signal ends it as SIGKILL does, since nothing handles it; some are killed once more, from
outside, at any moment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

# What is killed in ten turns.
_TURNS = (
    *("step", "checkpoint", "evaluation", "drawing", "compilation"),
    *("step", "checkpoint", "evaluation", "preparation", "step"),
)
# Of phases that the quick ones measure no duration of.
_ABOUT_SECONDS = {"drawing": [1.0], "compilation": [2.0]}
# Each start of FFCV compiles for seconds: not in the quick ones.
_QUICK_LOADERS, _LOADERS = ("resident", "torch"), ("resident", "torch", "ffcv", "dali")
_RECIPE = """
model.arch = "resnet8"
data = {batch_size = 16, workers = 1}
augment = {pad = 2, flip = true}
optimizer = {lr = 0.05, ema_decay = 0.8}
schedule = {name = "triangular", warmup = 0.2}
run = {epochs = 2, deterministic = true, device = "cpu", save_every = 2, keep = 2, keep_best = true}
"""
_EPOCHS, _PICTURES = 2, 4
_IMAGES = {"train": 40, "test": 8}
_KILLED_AGAIN = 0.3


@dataclasses.dataclass
class Findings:
    """kills: how many hit each phase, or the time between two. lost: what was lost or wrong, a line each."""

    kills: dict[str, int]
    lost: list[str]
    seconds: float

    def __str__(self) -> str:
        hit = ", ".join(f"{count} in {phase}" for phase, count in sorted(self.kills.items()))
        return f"{sum(self.kills.values())} kills ({hit}) in {self.seconds:.0f} s; lost: {len(self.lost)}"


def run_kills(count: int, seed: int, *, quick: bool = False) -> Findings:
    """Kill ``count`` times, in a process of its own. quick: without the loaders and the compiled trainings that take
    seconds to start; what is killed while it compiles goes on uncompiled."""
    command = [sys.executable, __file__, "--json", "--count", str(count), "--seed", str(seed), *(["--quick"] * quick)]
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return Findings(**json.loads(done.stdout))


@dataclasses.dataclass
class _Plan:
    """When a process is to end: seconds after the beginning of phase number ``number`` of its kind; None for never."""

    phase: str | None = None
    number: int = 0
    seconds: float = 0.0


class _Phases:
    """What a process tells of its phases, to a file; and its end."""

    def __init__(self, plan: _Plan, told: int) -> None:
        self._plan, self._told, self._seen = plan, told, -1

    def tell(self, begins: bool, phase: str) -> None:
        os.write(self._told, f"{'+' if begins else '-'} {phase} {time.monotonic()}\n".encode())
        self._seen += begins and phase == self._plan.phase
        if begins and phase == self._plan.phase and self._seen == self._plan.number:
            signal.setitimer(signal.ITIMER_REAL, max(self._plan.seconds, 1e-6))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.tell(True, name)
        yield
        self.tell(False, name)

    def watch(self, place: Any, name: str, phase: str) -> None:
        """Have a function be a phase."""
        function = getattr(place, name)

        def call(*arguments: Any, **more: Any) -> Any:
            with self.phase(phase):
                return function(*arguments, **more)

        setattr(place, name, call)


_Work = Callable[[_Phases], int]


class _Child:
    """A forked process that does ``work`` to its end or its ``plan``'s. output: the file that takes what it prints.

    durations: what each phase took, each time, and open: those that it was in, once it has ended."""

    def __init__(self, work: _Work, output: Path, plan: _Plan | None = None) -> None:
        # A file: a pipe is held open by torch's loading processes, which outlive a killed parent by seconds.
        self._told = output.with_name("told.txt")
        with open(self._told, "wb") as told:
            self._pid = os.fork()
            if self._pid == 0:
                _do(work, _Phases(plan or _Plan(), told.fileno()), output)
        self.durations: dict[str, list[float]] = {}
        self.open: list[str] = []

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, or a signal's number with a minus."""
        status, began = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), []
        for line in self._told.read_text().splitlines():
            sign, phase, moment = line.split()
            if sign == "+":
                self.open.append(phase)
                began.append(float(moment))
            else:
                self.durations.setdefault(self.open.pop(), []).append(float(moment) - began.pop())
        return status


def _do(work: _Work, phases: _Phases, output: Path) -> None:
    """The whole life of a forked process."""
    status = 99
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        status = work(phases)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _train(phases: _Phases, arguments: list[str]) -> int:
    """fast-train, which tells of its phases."""
    from fast_train.pipeline import cli, commands
    from fast_train.pipeline.engine import saving, trainer
    from fast_train.pipeline.engine.step import TrainStep

    phases.watch(trainer, "ready_steps", "compilation")
    phases.watch(TrainStep, "__call__", "step")
    phases.watch(saving, "save_checkpoint", "checkpoint")
    phases.watch(trainer, "evaluate", "evaluation")
    phases.watch(commands, "write_pictures", "drawing")
    return cli.main(arguments)


def _prepare(phases: _Phases, images: Path, out: Path) -> int:
    """prep-data, which is one phase."""
    from fast_train.data_prep import cli

    with phases.phase("preparation"):
        options = ["--formats", "packed,ffcv,dali", "--workers", "1", "--overwrite", "--out", str(out)]
        return cli.main(["--dataset", f"folder:{images}", *options])


class _Torture:
    """The kills of one process, in a folder of its own. kills, lost: as in `Findings`."""

    def __init__(self, root: Path, seed: int, *, quick: bool) -> None:
        self._root, self._random, self._quick = root, random.Random(seed), quick
        self.kills, self.lost = Counter[str](), list[str]()
        self._output = root / "output.txt"
        self._undisturbed: dict[str, tuple[dict[str, list[float]], Path]] = {}
        (root / "small.toml").write_text(_RECIPE)
        for name in ("images", "others"):
            _draw_images(root / name)

    def run(self, count: int) -> None:
        number = 0
        while sum(self.kills.values()) < count:
            phase, folder = _TURNS[number % len(_TURNS)], self._root / f"run-{number}"
            number += 1
            self._output.write_text("")
            try:
                self._preparation(folder) if phase == "preparation" else self._training(folder, phase)
            except AssertionError as error:
                said = " | ".join(self._output.read_text(errors="replace").splitlines()[-5:])
                self.lost.append(f"{folder.name}, to be killed in {phase}: {error}; it said: {said}")
                print(self.lost[-1], file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)

    def _kill(self, work: _Work, phase: str, undisturbed: dict[str, list[float]]) -> None:
        """Start the work and end it at a random moment of a phase. undisturbed: what each one takes, each time."""
        times = undisturbed[phase]
        number = self._random.randrange(len(times))
        seconds = self._random.random() * times[number]
        self._count(_Child(work, self._output, _Plan(phase, number, seconds)))

    def _count(self, child: _Child) -> None:
        if child.wait() in (-signal.SIGKILL, -signal.SIGALRM):
            self.kills[child.open[0] if child.open else "the time between"] += 1

    def _straight(self, kind: str, work: Callable[[_Phases, Path], int]) -> tuple[dict[str, list[float]], Path]:
        """What each phase takes where nothing disturbs it, each time; and where the result lies."""
        if kind not in self._undisturbed:
            folder = self._root / f"straight-{kind}"
            child = _Child(lambda phases: work(phases, folder), self._output)
            assert child.wait() == 0, self._output.read_text()
            self._undisturbed[kind] = child.durations, folder
        return self._undisturbed[kind]

    def _training(self, folder: Path, phase: str) -> None:
        data = self._straight("preparation", lambda phases, out: _prepare(phases, self._root / "images", out))[1]
        drawing, compiled = phase == "drawing", phase == "compilation"
        loader = "resident" if compiled else self._random.choice(_QUICK_LOADERS if self._quick else _LOADERS)

        def train(phases: _Phases, folder: Path, *more: str) -> int:
            place = ["--data", str(data), "--recipe", str(self._root / "small.toml"), "--out", str(folder)]
            return _train(phases, [*place, "--resume", "auto", *([] if drawing else ["--brief"]), *more])

        # What is compiled takes a minute to compile anew, so the quick ones take another way from there.
        compiled_on = ["--compile"] if compiled and not self._quick else []
        kind = "plain" if self._quick or not (drawing or compiled) else phase
        if compiled_on:
            # What comes after it finds most of what is compiled in a cache, and takes less time.
            self._straight("before", lambda phases, out: train(phases, out, *compiled_on))
        undisturbed, straight = self._straight(kind, lambda phases, out: train(phases, out, *compiled_on))
        if kind == "plain":
            undisturbed = {**undisturbed, **_ABOUT_SECONDS}
        options = ["--loader", loader]
        first = [*options, *(["--compile"] if compiled else [])]
        self._kill(lambda phases: train(phases, folder, *first), phase, undisturbed)
        _check_what_a_kill_left(folder)
        again = _Child(lambda phases: train(phases, folder, *options, *compiled_on), self._output)
        if self._random.random() < _KILLED_AGAIN:
            time.sleep(self._random.random())
            again.kill()
            self._count(again)
            _check_what_a_kill_left(folder)
            again = _Child(lambda phases: train(phases, folder, *options, *compiled_on), self._output)
        status = again.wait()
        assert status == 0, f"it ended with {status} where it was to go on"
        _check_same_run(folder, straight)
        pictures = len([*folder.glob("*.png")])
        assert pictures == (_PICTURES if drawing else 0), f"{pictures} pictures"

    def _preparation(self, folder: Path) -> None:
        """Of a new set, or of one that takes another's place."""
        from fast_train.data_prep.manifest import PreparedSet

        images, others, out = self._root / "images", self._root / "others", folder / "set"
        folder.mkdir()
        undisturbed, straight = self._straight("preparation", lambda phases, out: _prepare(phases, images, out))
        if self._random.random() < 0.5:
            shutil.copytree(self._straight("others", lambda phases, out: _prepare(phases, others, out))[1], out)
        self._kill(lambda phases: _prepare(phases, images, out), "preparation", undisturbed)
        # Whatever is there is whole.
        if out.exists():
            PreparedSet.open(out, verify=True)
        status = _Child(lambda phases: _prepare(phases, images, out), self._output).wait()
        assert status == 0, f"the next one ended with {status}"
        assert [path.name for path in folder.iterdir()] == ["set"], "something is left beside the set"
        prepared = PreparedSet.open(out, verify=True)
        assert prepared.manifest.files == PreparedSet.open(straight).manifest.files, "it is another set"


def _draw_images(root: Path) -> None:
    """Class folders of small noisy images; those of two roots differ."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng([*root.name.encode()])
    for split, count in _IMAGES.items():
        for shade, name in ((60, "dark"), (120, "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(shade, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")


def _check_what_a_kill_left(folder: Path) -> None:
    """Whatever has its name is whole."""
    from fast_train.pipeline.engine.checkpoint import load_run_state

    if (folder / "config.json").exists():
        json.loads((folder / "config.json").read_bytes())
    for path in folder.rglob("*.pt"):
        load_run_state(path)


def _check_same_run(folder: Path, straight: Path) -> None:
    """Both ended alike, to the bit but for times, and left the same files."""
    from fast_train.pipeline.engine.checkpoint import load_run_state

    names = [sorted(str(path.relative_to(f)) for path in f.rglob("*") if path.suffix in (".pt", ".part"))
             for f in (folder, straight)]  # fmt: skip
    assert names[0] == names[1], f"the files are {names[0]}, not {names[1]}"
    for name in names[0]:
        first, second = (_plain(load_run_state(f / name)) for f in (folder, straight))
        differ = sorted(key for key in second if first.get(key) != second[key])
        assert not differ, f"{name} differs in {', '.join(differ[:3])}"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [*range(1, _EPOCHS + 1)], "metrics.jsonl"


def _plain(state: Any, place: str = "") -> dict[str, Any]:
    """A checkpoint's values by their places, without times and what tells of the loader; tensors as their bytes."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, (list, tuple)):
        pairs = enumerate(state)
    else:
        timed = place.endswith(("seconds", "images_per_second", ".rng.cpu")) or place.startswith(".config.data")
        return {} if timed else {place: state.numpy().tobytes() if hasattr(state, "numpy") else state}
    return {name: value for key, child in pairs for name, value in _plain(child, f"{place}.{key}").items()}


def _import_for_all(*, quick: bool) -> None:
    """What each training would import again."""
    from fast_train.common.startup import quick_imports

    with quick_imports():
        for module in ("data_prep.cli", "pipeline.commands", "pipeline.report.plots"):
            import_module(f"fast_train.{module}")
        for module in () if quick else ("ffcv_reader", "dali_graph"):
            import_module(f"fast_train.pipeline.loaders.{module}")
    import_module("torch").set_num_threads(1)


def main() -> int:
    """The command; exit status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="without what takes seconds to start")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        os.environ.setdefault("XDG_CACHE_HOME", str(Path(root, "cache")))
        _import_for_all(quick=flags.quick)
        torture = _Torture(Path(root), flags.seed, quick=flags.quick)
        torture.run(flags.count)
        findings = Findings(dict(torture.kills), torture.lost, time.monotonic() - began)
    print(json.dumps(dataclasses.asdict(findings)) if flags.json else findings)
    return 0 if flags.json else bool(findings.lost)


if __name__ == "__main__":
    sys.exit(main())
