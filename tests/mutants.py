"""Every reader against damaged input: an error of ours in one line or the right data, never a crash, a hang, a trace,
memory beyond a bound, or other images without a word.

python -m tests.mutants --count 1000                          of each reader
python -m tests.mutants --reader beton --first 17 --count 1   one mutant

A mutant follows from its reader's name and its number alone. Readers work in a process of their own, which may take
`_ROOM` bytes of memory beyond what reading whole input took, and `_SECONDS` for a mutant. Exit status: 1 if anything
was found. Where a checksum keeps a file, three mutants in four get one that fits: the reader's own checks are to hold.
Their pixels may then differ, as may those of formats without a checksum.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# The folder of the tests is where a script finds its neighbours, not where `python -m tests.mutants` does.
sys.path.insert(0, str(Path(__file__).parent))
from mutant_readers import READERS, Reader, lacks
from mutators import Mutator

_SECONDS = 60
_ROOM = 1 << 30


@dataclass(frozen=True)
class Finding:
    """What a reader made of a mutant that it may not. what: the exception, the signal, or what differs."""

    reader: str
    seed: int
    what: str


@dataclass
class Findings:
    """Of ``tried`` mutants, ``refused`` were named in one line and ``right`` read as they may be."""

    reader: str
    tried: int = 0
    refused: int = 0
    right: int = 0
    found: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.reader:<15} {self.tried:>6,} tried, {self.refused:,} refused, {self.right:,} right"
        return "\n".join([counts, *(f"  seed {f.seed}: {f.what}" for f in self.found)])


def run_mutants(reader: str, seeds: Iterable[int]) -> Findings:
    """Have a reader read the mutants of these numbers, in processes of its own."""
    return run_all([reader], seeds)[0]


def run_all(readers: Sequence[str], seeds: Iterable[int]) -> list[Findings]:
    """`run_mutants` of several readers, which share a process as long as none ends it."""
    seeds = list(seeds)
    results = {name: Findings(name) for name in readers}
    left = {name: list(seeds) for name in readers}
    while any(left.values()):
        _run_process(left, results)
    return list(results.values())


def _run_process(left: dict[str, list[int]], results: dict[str, Findings]) -> None:
    """One process for what is left, until its end or until it ends of a mutant."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        log = Path(folder, "log")
        log.touch()
        command = [sys.executable, __file__, "--work", folder, json.dumps(left)]
        source = str(Path(__file__).parent.parent / "src")
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
        environment = {**kept, "PYTHONPATH": source, "HOME": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONFAULTHANDLER": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        begun: tuple[str, int] | None = None
        for line in log.read_text().splitlines():
            name, seed, verdict, what = json.loads(line)
            if verdict == "begun":
                begun = (name, seed)
                left[name].remove(seed)
                results[name].tried += 1
                continue
            begun = None
            if verdict == "found":
                results[name].found.append(Finding(name, seed, what))
            else:
                results[name].__dict__[verdict] += 1
    if begun is not None:
        results[begun[0]].found.append(Finding(*begun, _end_of(done)))
    elif done.returncode:
        raise RuntimeError(f"the mutants' process ended before a mutant ({done.returncode}):\n{done.stderr[-3000:]}")


def _end_of(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    else:
        how = f"longer than {_SECONDS} s" if "Timeout (" in done.stderr else f"exit status {done.returncode}"
    place = next((line.strip() for line in done.stderr.splitlines() if line.lstrip().startswith("File ")), "")
    return f"ended the process: {how}; {place}"


def _work(folder: Path, left: dict[str, list[int]]) -> None:
    """In the process: read mutants, and say in the log what came of each."""
    from fast_train.common.startup import quick_imports

    faulthandler.enable()
    with open(folder / "log", "a", buffering=1) as log:

        def note(name: str, seed: int, verdict: str, what: str = "") -> None:
            log.write(json.dumps([name, seed, verdict, what]) + "\n")

        rights = []
        with quick_imports():
            for name, seeds in left.items():
                if seeds:
                    reader = READERS[name](folder / name)
                    rights.append((name, seeds, reader, {path: reader.read(path) for path in reader.targets}))
        _bound_memory()
        for name, seeds, reader, right in rights:
            for seed in seeds:
                note(name, seed, "begun")
                faulthandler.dump_traceback_later(_SECONDS, exit=True)
                note(name, seed, *_try(reader, zlib.crc32(name.encode()), seed, right))
                faulthandler.cancel_dump_traceback_later()


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _try(reader: Reader, salt: int, seed: int, right: dict[Path, str]) -> tuple[str, str]:
    """(verdict, what) of one mutant; the file is whole again afterwards."""
    mutator = Mutator(np.random.default_rng([salt, seed]))
    path = mutator.choose(reader.targets)
    raw = path.read_bytes()
    try:
        path.write_bytes(reader.damage(path, raw, mutator))
        fits = reader.refits and mutator.chance(0.75)
        with reader.refitted(path) if fits else contextlib.nullcontext():
            read = reader.read(path)
    except Exception as error:
        return _judge(error)
    finally:
        path.write_bytes(raw)
    if reader.checked and not fits and read != right[path]:
        return "found", "other data, without a word"
    return "right", ""


def _judge(error: Exception) -> tuple[str, str]:
    """Whether it is one of ours, for a person, in a line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = isinstance(error, ValueError) and "fast_train" in last.filename
    if ours and str(error) and "\n" not in str(error):
        return "refused", ""
    where = f"{Path(last.filename).name}:{last.lineno}"
    return "found", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", choices=[*READERS], help="(all)")
    parser.add_argument("--count", type=int, default=50, help="mutants of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    flags = parser.parse_args()
    found = 0
    for name in flags.reader or READERS:
        if library := lacks(name):
            print(f"{name:<10} not tried: {library} is not installed")
            continue
        findings = run_mutants(name, range(flags.first, flags.first + flags.count))
        print(findings, flush=True)
        found += len(findings.found)
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        _work(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        sys.exit(main())
