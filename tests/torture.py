"""All that is done to lose or to falsify something, and what came of it: docs/reliability.md.

python tests/torture.py --kills 200 --mutants 1000

Exit status: 1 if anything was lost or wrong. The tables are written all the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

# What lies here, and the package, wherever this is called from.
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))

from faults.cases import CASES
from faults.harness import Verdict, make_inputs, run_fault
from mutants import READERS, Findings, run_all
from torture_kills import Findings as Kills
from torture_kills import run_kills

REPORT = Path(__file__).parents[1] / "docs" / "reliability.md"
_BEGIN = """# Reliability

What this project does to itself to lose a run, to damage a set or to show other images than it should, and what came of
it. The tables are written by

```
{command}
```

which took {minutes:.0f} minutes on {machine}.
{verdict}
`make test` does a part of it each time, `make test-long` more. What a fault may cost, and what it may not, is in
[architecture.md](architecture.md#what-holds-it-together).
"""
_KILLS = """
## Killed at random moments

A training, or a preparation, is ended by SIGKILL at a random moment of a phase, goes on with `--resume auto`, and is
compared with one that was never interrupted: weights, optimizer, metrics and pictures, bit for bit (`--deterministic`;
loaders {loaders}, with checkpoints every two steps). A preparation leaves nothing that looks whole. Seed {seed}.

| killed in | kills | lost or different |
| --- | ---: | ---: |
{rows}
| **all**, in {seconds:.0f} s | **{total}** | **{lost}** |
"""
_MUTANTS = """
## Damaged input

Each reader gets whole input that was damaged in a way that follows from a number: flipped bits, cut and doubled parts,
zeros, extreme numbers where the format has numbers. Right is an error of one line, or the right data. A crash, a hang
of a minute, a trace, 1 GiB of memory beyond what whole input takes, or other images without a word is a finding. Where
a checksum keeps a file, three in four get one that fits, so that the reader itself is tried.

| reader | tried | refused in one line | read right | findings |
| --- | ---: | ---: | ---: | ---: |
{rows}
"""
_FAULTS = """
## Faults

A command runs into a fault. Right: the exit status and the one line that belong to it, no trace, nothing half-written,
what was finished still there, and the same command succeeds once the fault is gone.

| fault | command | what happened | seconds | |
| --- | --- | --- | ---: | --- |
{rows}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="trainings and preparations to kill")
    parser.add_argument("--mutants", type=int, default=1000, help="damaged inputs for each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, default=REPORT, help="where the tables go")
    flags = parser.parse_args(arguments)
    began = time.perf_counter()
    # Two cores are enough for two of the three: none measures a time.
    with ThreadPoolExecutor() as pool:
        mutants = pool.submit(run_all, [*READERS], range(flags.mutants))
        kills = run_kills(flags.kills, flags.seed)
        _say(str(kills))
        faults = _make_faults()
        found = mutants.result()
    bad = _bad(kills, found, faults)
    for line in bad:
        _say(line)
    flags.out.write_text(_report(flags, kills, found, faults, bad, time.perf_counter() - began))
    _say(f"written: {flags.out}")
    return 1 if bad else 0


def _make_faults() -> list[Verdict]:
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        for number, case in enumerate(CASES):
            place = Path(folder) / f"fault-{number}"
            place.mkdir()
            verdicts.append(run_fault(case, Path(folder), place))
            _say(f"{case.name}: {verdicts[-1].missing or '; '.join(verdicts[-1].problems) or 'as it should be'}")
    return verdicts


def _bad(kills: Kills, mutants: list[Findings], faults: list[Verdict]) -> list[str]:
    """Whatever was lost or wrong, a line each."""
    return [
        *kills.lost,
        *(f"{found.reader}, mutant {found.seed}: {found.what}" for reader in mutants for found in reader.found),
        *(f"{verdict.case.name}: {problem}" for verdict in faults for problem in verdict.problems),
    ]


def _report(
    flags: argparse.Namespace,
    kills: Kills,
    mutants: list[Findings],
    faults: list[Verdict],
    bad: list[str],
    seconds: float,
) -> str:
    made = [verdict for verdict in faults if verdict.missing is None]
    verdict = (
        f"Nothing was lost and nothing was wrong in {sum(kills.kills.values()):,} kills, "
        f"{sum(found.tried for found in mutants):,} damaged inputs and {len(made)} faults."
        if not bad
        else f"**{len(bad)} findings**, listed at the end."
    )
    begin = _BEGIN.format(
        command=f"python tests/torture.py --kills {flags.kills} --mutants {flags.mutants} --seed {flags.seed}",
        minutes=seconds / 60,
        machine=_machine(),
        verdict=verdict,
    )
    findings = "\n## Findings\n\n" + "".join(f"- {_cell(line)}\n" for line in bad) if bad else ""
    return begin + _kills(kills, flags.seed) + _mutants(mutants) + _faults(faults) + findings


def _kills(kills: Kills, seed: int) -> str:
    rows = [f"| {phase} | {count} | |" for phase, count in kills.kills.items()]
    total, lost = sum(kills.kills.values()), len(kills.lost)
    return _KILLS.format(
        loaders="resident, torch, ffcv, dali", seed=seed, rows="\n".join(rows), total=total, lost=lost,
        seconds=kills.seconds,
    )  # fmt: skip


def _mutants(mutants: list[Findings]) -> str:
    rows = [f"| {f.reader} | {f.tried:,} | {f.refused:,} | {f.right:,} | {len(f.found)} |" for f in mutants]
    return _MUTANTS.format(rows="\n".join(rows))


def _faults(faults: list[Verdict]) -> str:
    rows = [
        f"| {v.case.name} | `{v.case.command}` | {_cell(v.missing or v.happened)} | {v.seconds:.0f} | "
        f"{'not made here' if v.missing else 'wrong' if v.problems else 'right'} |"
        for v in faults
    ]
    return _FAULTS.format(rows="\n".join(rows))


def _cell(text: str) -> str:
    # Paths as they lie in the fault's own folder.
    return re.sub(r"/\S*?/fault-\d+/", "", " ".join(text.split())).replace("|", "\\|")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, torch {version('torch')}"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
