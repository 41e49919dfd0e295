"""Commands under a fault, each in a process of its own: how they end, what they say, and what lies on the disk after.

A `Run` is a command that is about to be started in a place of its own; a fault is a function that changes it. Mounts
are made in a user's namespace, so that nobody needs to be root.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
#: Seconds in which any command is to end, whatever the fault.
BOUND = 240.0
_DISK = "48m"


class CanNotInject(Exception):
    """This machine has no way to make the fault: what is missing."""


@dataclass
class Run:
    """root: of everything, and where the command is started. disk: a folder for results. data, images: a prepared set
    and the folders of images that it was made from. prefix: what the command's line begins with. watch: called with
    the started process; returns what was wrong."""

    root: Path
    prefix: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    limits: list[tuple[int, int]] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    repairs: list[Callable[[Run], None]] = field(default_factory=list)
    watch: Callable[[Run, subprocess.Popen[str]], list[str]] = lambda run, process: []
    terminal: bool = False
    holder: int | None = None

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    @property
    def data(self) -> Path:
        return self.root / "set"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def seen(self, path: Path) -> Path:
        """Where a path of the command lies for this process."""
        return path if self.holder is None else Path(f"/proc/{self.holder}/root{path}")

    def line(self, module: str, flags: Sequence[str]) -> list[str]:
        places = {"disk": self.disk, "data": self.data, "images": self.images, "root": self.root}
        hooked = [str(HERE / "hooked.py"), *(text.format(**places) for text in self.hooks)] if self.hooks else ["-m"]
        return [*self.prefix, sys.executable, *hooked, module, *(text.format(**places) for text in flags)]

    def start(self, module: str, flags: Sequence[str]) -> subprocess.Popen[str]:
        given = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **self.environment}
        given["FAULT_MADE"] = str(self.root / "made")
        environment = {name: value for name, value in given.items() if name not in self.without}
        with open(self.root / "output", "w") as output, open(self.root / "errors", "w") as errors:
            master, terminal = os.openpty() if self.terminal else (None, None)
            process = subprocess.Popen(
                self.line(module, flags),
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=output if terminal is None else terminal,
                stderr=errors if terminal is None else terminal,
                text=True,
                start_new_session=True,
                preexec_fn=self._prepare,
            )
            if master is not None:
                os.close(terminal)
                self.master = master
        return process

    def _prepare(self) -> None:
        # Background jobs of a shell are deaf to Ctrl-C, and those of nohup to a hang-up.
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        for kind, value in self.limits:
            resource.setrlimit(kind, (value, value))
        if self.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def wait_for(self, text: str, process: subprocess.Popen[str]) -> None:
        """Until the command has printed this, or has ended."""
        until = time.monotonic() + BOUND
        while text not in (self.root / "output").read_text() and process.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"'{text}' was never printed")
            time.sleep(0.05)


Fault = Callable[[Run], None]


@contextmanager
def namespace(run: Run) -> Iterator[None]:
    """In the block, the run's mounts are there, for its commands alone."""
    if not run.mounts:
        yield
        return
    script = " && ".join([*run.mounts, "echo ready", "exec cat"])
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stderr
        try:
            if holder.stdout.readline() != "ready\n":
                raise CanNotInject(f"mounts in a namespace of one's own: {holder.stderr.read().strip()}")
            run.holder = holder.pid
            run.prefix = ["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials",
                          "sh", "-c", 'cd "$0" && exec "$@"', str(run.root)]  # fmt: skip
            yield
        finally:
            holder.stdin.close()


def in_namespace(run: Run, command: str) -> None:
    subprocess.run([*run.prefix, "sh", "-c", command], check=True, capture_output=True)


# -- the faults ------------------------------------------------------------------------------------------------------


def small_disk(run: Run) -> None:
    run.mounts.append(f"mount -t tmpfs -o size={_DISK} none {run.disk}")


def full_at(place: str, number: int = 1) -> Fault:
    """The disk of the result is full from a call of a function on; the repair makes room."""

    def fault(run: Run) -> None:
        small_disk(run)
        run.hooks += [place, str(number), "fill={disk}"]
        run.repairs.append(lambda run: run.seen(run.disk / "filler").unlink(missing_ok=True))

    return fault


def read_only_disk(run: Run) -> None:
    run.mounts.append(f"mount -t tmpfs -o ro,size={_DISK} none {run.disk}")
    run.repairs.append(lambda run: in_namespace(run, f"mount -o remount,rw {run.disk}"))


def read_only(*paths: str) -> Fault:
    """Folders as they are, but nothing can be written there."""

    def fault(run: Run) -> None:
        for path in paths:
            at = path.format(root=run.root, data=run.data)
            if Path(at).is_dir() and not Path(at).is_symlink():
                run.mounts += [f"mount --rbind {at} {at}", f"mount -o remount,ro,bind {at}"]

    return fault


def no_temporary_folder(run: Run) -> None:
    # The user's caches lie elsewhere, and can be written.
    caches = {"XDG_CACHE_HOME": f"{run.disk}/cache", "XDG_CONFIG_HOME": f"{run.disk}/config"}
    run.environment |= {"TMPDIR": "/nowhere", "TEMP": "/nowhere", "TMP": "/nowhere", **caches}
    read_only(str(Path(tempfile.gettempdir()).resolve()), "/tmp", "/var/tmp", "/usr/tmp", "{root}")(run)
    run.mounts.append(f"mount -t tmpfs -o size=64m none {run.disk}")


def small_shared_memory(run: Run) -> None:
    run.mounts.append("mount -t tmpfs -o size=64k none /dev/shm")


def hooked(place: str, number: int, action: str) -> Fault:
    """See `hooked.py`."""

    def fault(run: Run) -> None:
        run.hooks += [place, str(number), action]

    return fault


def preloaded(**faults: int) -> Fault:
    """See `shim.c`."""

    def fault(run: Run) -> None:
        run.environment |= {
            "LD_PRELOAD": str(_shim()),
            **{f"FAULT_{name.upper()}": str(n) for name, n in faults.items()},
        }
        run.repairs.append(lambda run: run.environment.pop("LD_PRELOAD"))

    return fault


@functools.cache
def _shim() -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CanNotInject("a C compiler")
    library = Path(tempfile.mkdtemp(prefix="faults-")) / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


def environment(**values: str) -> Fault:
    def fault(run: Run) -> None:
        run.environment |= {name: value.format(root=run.root) for name, value in values.items()}
        run.repairs.append(lambda run: [run.environment.pop(name) for name in values])

    return fault


def without(*names: str) -> Fault:
    return lambda run: run.without.extend(names)


def few_files(run: Run) -> None:
    run.limits.append((resource.RLIMIT_NOFILE, 64))


def closed_terminal(marker: str) -> Fault:
    """The command runs in a terminal, which is closed after it has begun."""

    def fault(run: Run) -> None:
        run.terminal = True
        run.watch = lambda run, process: _close(run, process, marker)

    return fault


def _close(run: Run, process: subprocess.Popen[str], marker: str) -> list[str]:
    said = b""
    while marker.encode() not in said and process.poll() is None:
        said += os.read(run.master, 1 << 12)
    os.close(run.master)
    return []


def sent(signum: int, marker: str) -> Fault:
    """A signal to the whole process group once the command has printed something."""

    def watch(run: Run, process: subprocess.Popen[str]) -> list[str]:
        run.wait_for(marker, process)
        os.killpg(process.pid, signum)
        return []

    return lambda run: setattr(run, "watch", watch)


# -- what happened ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and a fault. before: flags of a run of the same command without the fault, that comes first; None for
    none. status: those that are right. says: what the last line on standard error has. lines: at most so many there.
    kept: patterns of what must lie on the disk of the result. after: looks at more, and returns what was wrong. again:
    further flags of the same command without the fault, which is to succeed; None where there is nothing to repeat.
    quick: whether it is of the quick suite."""

    name: str
    command: str
    faults: tuple[Fault, ...]
    before: str | None = None
    flags: str = ""
    status: tuple[int, ...] = (2,)
    says: str = ""
    lines: int = 1
    kept: tuple[str, ...] = ()
    again: str | None = ""
    quick: bool = False
    after: Callable[[Run], list[str]] = lambda run: []


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """problems: what was not as it should be; none where all was right. happened: in a line. seconds: of the command
    under the fault. missing: what this machine lacks for the fault, which then was not made."""

    case: Case
    problems: tuple[str, ...] = ()
    happened: str = ""
    seconds: float = 0.0
    missing: str | None = None


@dataclass(frozen=True)
class Command:
    """product: what lies in ``out`` when the work is done."""

    module: str
    flags: str
    product: str


_TRAINS = "--data {data} --device cpu --out {disk}/out"
COMMANDS = {
    "prep-data": Command(
        "fast_train.data_prep.cli", "--dataset folder:{images} --out {disk}/out --workers 1", "manifest.json"
    ),
    "fast-train": Command(
        "fast_train.pipeline.cli", f"{_TRAINS} --arch resnet8 --batch-size 16 --amp off --epochs 2", "last.pt"
    ),
    "bench-throughput": Command(
        "fast_train.benchmarks.throughput.cli",
        f"{_TRAINS} --quick --repeats 1 --arch resnet8 --workers 1 --only roofline", "report.html",
    ),
    "bench-study": Command(
        "fast_train.benchmarks.studies.cli",
        f"augmentation {_TRAINS} --variants resnet20-none --steps 2 --batch-size 16 --amp off",
        "report.html",
    ),
    "lab": Command(
        "fast_train.benchmarks.lab.cli", f"{_TRAINS} --quick --arch resnet8 --only floors", "step-lab.md"
    ),
}  # fmt: skip


def make_inputs(root: Path) -> None:
    """Folders of images and the set that is prepared from them, and another set of the same shape."""
    generator = np.random.default_rng(0)
    for images, prepared in (("images", "set"), ("other-images", "other")):
        for split, count in (("train", 32), ("test", 8)):
            for name in ("bright", "dark"):
                folder = root / images / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = generator.integers(0, 128, (8, 8, 3)) + (127 if name == "bright" else 0)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        line = [sys.executable, "-m", COMMANDS["prep-data"].module, "--dataset", f"folder:{root / images}", "--out"]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        subprocess.run([*line, str(root / prepared)], env=environment, check=True, capture_output=True)


def run_fault(case: Case, inputs: Path, root: Path) -> Verdict:
    """Make the fault, run the command, look, run it again. inputs: of `make_inputs`. root: an empty folder."""
    run, command, problems = Run(root.resolve()), COMMANDS[case.command], list[str]()
    run.disk.mkdir()
    for name in ("images", "set", "other"):
        shutil.copytree(inputs / name, run.root / name)
    flags = [*command.flags.split(), *case.flags.split()]
    try:
        for fault in case.faults:
            fault(run)
        with namespace(run):
            if case.before is not None:
                sound = dataclasses.replace(run, hooks=[], environment={}, watch=lambda run, process: [])
                problems = _without_fault(case, sound, [*command.flags.split(), *case.before.split()])
            began = time.monotonic()
            status, found = _ended(run, run.start(command.module, flags))
            seconds = time.monotonic() - began
            said = (run.root / "errors").read_text()
            problems += [*found, *_judge(case, run, status, said)]
            happened = f"status {status}, {said.strip().splitlines()[-1] if said.strip() else 'no word'}"
            if case.again is not None:
                for repair in run.repairs:
                    repair(run)
                run.hooks, run.limits, run.terminal = [], [], False
                run.watch = lambda run, process: []
                problems += _without_fault(case, run, [*flags, *case.again.split()])
    except CanNotInject as error:
        return Verdict(case=case, missing=str(error))
    return Verdict(case=case, problems=tuple(problems), happened=happened, seconds=seconds)


def _ended(run: Run, process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    problems = run.watch(run, process)
    try:
        process.wait(BOUND)
    except subprocess.TimeoutExpired:
        problems.append(f"it had not ended after {BOUND:.0f} s")
    left = _session(process.pid)
    # Helpers that end with their parent may take a moment.
    until = time.monotonic() + 15
    while left and process.returncode is not None and time.monotonic() < until:
        time.sleep(0.2)
        left = _session(process.pid)
    if left and process.returncode is not None:
        problems.append(f"{len(left)} of its processes are left")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return process.wait(), problems


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(folder.name))
    return found


def _judge(case: Case, run: Run, status: int, said: str) -> list[str]:
    problems = []
    if status not in case.status:
        problems.append(f"status {status}, not {' or '.join(map(str, case.status))}")
    if "Traceback" in said:
        problems.append("a trace")
    lines = said.splitlines()
    if len(lines) > case.lines:
        problems.append(f"{len(lines)} lines on standard error")
    if not re.search(case.says, lines[-1] if lines else ""):
        problems.append(f"it does not say '{case.says}'")
    out = run.seen(run.disk)
    if run.hooks and not (run.root / "made").exists():
        problems.append("the fault was never made: nothing called its place so often")
    problems += [f"{pattern} is not there" for pattern in case.kept if not list(out.glob(pattern))]
    problems += [f"{path.relative_to(out)} is left" for path in out.rglob("*.part")]
    problems += case.after(run)
    if problems and said:
        problems.append(f"standard error: {said[-2000:]}")
    return problems


def _without_fault(case: Case, run: Run, flags: Sequence[str]) -> list[str]:
    """The command, which is to succeed."""
    command = COMMANDS[case.command]
    status, problems = _ended(run, run.start(command.module, flags))
    said = (run.root / "errors").read_text()
    if status != 0:
        problems.append(f"without the fault it ends with {status}: {said[-2000:]}")
    elif not list(run.seen(run.disk).glob(f"*/{command.product}")):
        problems.append(f"without the fault it makes no {command.product}")
    return problems
