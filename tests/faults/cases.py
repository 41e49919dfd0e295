"""Every fault that is injected, and what is right under it. `harness.run_fault` makes one."""

from __future__ import annotations

import errno
import json
import math
import signal
import subprocess

from faults.harness import (
    Case,
    Run,
    closed_terminal,
    environment,
    few_files,
    full_at,
    hooked,
    no_temporary_folder,
    preloaded,
    read_only,
    read_only_disk,
    sent,
    small_disk,
    small_shared_memory,
    without,
)

_FULL = "No space left on device"
_SAVES = "fast_train.pipeline.engine.checkpoint:save_checkpoint"
_LOGS = "fast_train.pipeline.run.log:RunLog.on_epoch_end"
_DRAWS = "fast_train.pipeline.report.summary:write_pictures"
_STEPS = "fast_train.pipeline.engine.step:TrainStep.after"
_EVALUATES = "fast_train.pipeline.engine.evaluate:evaluate"
_COMPILES = "torch._inductor.compile_fx:compile_fx"
_LOADS = "fast_train.pipeline.loaders.resident:ResidentLoader.__init__"
_WRITES_SPLIT = "fast_train.data_prep.prepare:_write_split"
_REPORTS = "fast_train.benchmarks.throughput.report:write_report"
_RESUMED = "--resume auto"
# Of a run that would go on for hours.
_STOPPED = "--resume auto --epochs 100000 --stop-after 1"
_OVERWRITES = "overwrite={data}/train.safetensors"
_ELSEWHERE = "--out {disk}/again"
_WORKER = "--loader torch --workers 1"


def _in_use(run: Run, process: subprocess.Popen[str]) -> list[str]:
    """A second command for the folder of one that trains is refused; the first one is stopped and saved after that."""
    run.wait_for("epoch 1", process)
    line = run.line("fast_train.pipeline.cli", ["--data", "{data}", "--device", "cpu", "--arch", "resnet8",
                                                "--out", "{disk}/out", "--resume", "auto"])  # fmt: skip
    second = subprocess.run(line, cwd=run.root, capture_output=True, text=True, check=False)
    process.send_signal(signal.SIGTERM)
    if second.returncode == 2 and "another fast-train is writing into" in second.stderr:
        return []
    return [f"the second run ended with {second.returncode}: {second.stderr}"]


def _two_runs(run: Run) -> None:
    run.environment["PYTHONPATH"] = ""
    run.watch = _in_use


def _long_temporary_folder(run: Run) -> None:
    folder = run.root / ("t" * 80)
    folder.mkdir()
    run.environment["TMPDIR"] = str(folder)
    run.repairs.append(lambda run: run.environment.clear())


def _finite(run: Run) -> list[str]:
    """What was logged are finite numbers of 0 or more, whatever the clock said."""
    lines = (run.seen(run.disk) / "out" / "metrics.jsonl").read_text().splitlines()
    values = [value for line in lines for value in json.loads(line).values() if isinstance(value, float)]
    bad = [value for value in values if not (math.isfinite(value) and value >= 0)]
    return [f"figures in the log that can't be: {bad}"] if bad else []


def _good_checkpoint(run: Run) -> list[str]:
    import torch

    state = torch.load(run.seen(run.disk) / "out" / "last.pt", weights_only=True)
    weights = state["step"]["model"].values()
    return [] if all(torch.isfinite(w).all() for w in weights if w.is_floating_point()) else ["weights are not finite"]


def _one_epoch(run: Run) -> list[str]:
    import torch

    state = torch.load(run.seen(run.disk) / "out" / "last.pt", weights_only=True)
    return [] if len(state["history"]) == 1 else ["the checkpoint is not that of the first epoch"]


DISKS = (
    Case(
        name="full while data are written",
        command="prep-data", faults=(full_at(_WRITES_SPLIT),), says=_FULL, quick=True,
    ),
    Case(
        name="full at the first checkpoint",
        command="fast-train", faults=(full_at(_SAVES),), flags="--brief", says=_FULL, again=_RESUMED, quick=True,
    ),
    Case(
        name="full at the next checkpoint",
        command="fast-train", faults=(full_at(_SAVES),), before="--epochs 1", flags=_RESUMED, says=_FULL,
        kept=("out/last.pt",), after=_good_checkpoint, again="",
    ),
    Case(
        name="full at the log",
        command="fast-train", faults=(full_at(_LOGS),), before="--epochs 1", flags=_RESUMED, says=_FULL,
        kept=("out/last.pt",), after=_good_checkpoint, again="",
    ),
    Case(
        name="full at the pictures",
        command="fast-train", faults=(full_at(_DRAWS),), status=(0,), lines=3, kept=("out/last.pt",), again=_RESUMED,
    ),
    Case(
        name="full at the report",
        command="bench-throughput", faults=(full_at(_REPORTS),), says=_FULL, again=None, quick=True,
    ),
    Case(
        name="full at a picture of the report",
        command="bench-throughput",
        faults=(full_at("fast_train.benchmarks.present.page:write_document"),),
        says=_FULL, kept=("out/report.json",), again=_ELSEWHERE,
    ),
    Case(
        name="full at the lab's report",
        command="lab", faults=(full_at("fast_train.benchmarks.lab.report:write"),), says=_FULL,
    ),
    Case(
        name="full at a study's report",
        command="bench-study", faults=(full_at("fast_train.benchmarks.studies.report:write_report"),), says=_FULL,
        kept=("out/runs/*/last.pt",),
    ),
    Case(name="read-only: data", command="prep-data", faults=(read_only_disk,), says="Read-only", quick=True),
    *(
        Case(name=f"read-only: {command}", command=command, faults=(read_only_disk,), says="(?i)read-only")
        for command in ("fast-train", "bench-throughput", "bench-study", "lab")
    ),
    Case(
        name="the prepared set is read-only",
        command="fast-train", faults=(small_disk, read_only("{data}")), status=(0,), kept=("out/last.pt",), again=None,
    ),
    *(
        Case(
            name=f"{command}: {what}", command=command, faults=(preloaded(**{call: number}),), status=(0,), again=None,
            quick=command == "prep-data",
        )
        for command in ("prep-data", "fast-train")
        for what, call, number in (
            ("a folder's sync is not supported", "fsync_folder", errno.EINVAL),
            ("locks are not supported", "flock", errno.ENOLCK),
        )
    ),
    *(
        Case(
            name=f"{command}: a sync fails", command=command, faults=(preloaded(fsync_file=errno.EIO),),
            says="Input/output error", again=_RESUMED if command == "fast-train" else "", quick=command == "prep-data",
        )
        for command in ("prep-data", "fast-train")
    ),
    Case(
        name="two runs in one folder",
        command="fast-train", faults=(_two_runs,), flags="--epochs 100000", status=(143,), says="saved",
        kept=("out/last.pt",), again=_STOPPED,
    ),
)  # fmt: skip

WORKERS = (
    *(
        Case(
            name=f"a worker is {what}",
            command="fast-train", faults=(hooked(_STEPS, 3, f"to_workers={signum}"),), flags=_WORKER,
            says="worker", kept=("out/config.json",), again=_RESUMED,
        )
        for what, signum in (("killed", "SIGKILL"), ("stopped", "SIGSTOP"))
    ),
    Case(
        name="a worker is out of memory",
        command="fast-train",
        faults=(hooked("fast_train.pipeline.loaders.torch_loader:PackedDataset.__getitem__", 20, "fail=MemoryError"),),
        flags=_WORKER, says="memory", again=_RESUMED,
    ),
    Case(
        name="/dev/shm is full",
        command="fast-train", faults=(small_shared_memory, small_disk), flags=f"{_WORKER} --batch-size 64",
        says="shared memory|/dev/shm", again=None,
    ),
    Case(
        name="a worker of prep-data is killed",
        command="prep-data", faults=(hooked("fast_train.data_prep.prepare:_write_split", 2, "to_workers=SIGKILL"),),
        flags="--workers 2", status=(0, 2),
    ),
    Case(
        name="the temporary folder's path has no room for a socket",
        command="fast-train", faults=(_long_temporary_folder,), flags=_WORKER, says="TMPDIR", again=_RESUMED,
    ),
)  # fmt: skip

SIGNALS = (
    *(
        Case(
            name=f"SIGTERM while it {what}",
            command="fast-train", faults=(hooked(place, 1, "send=SIGTERM"),), flags=flags, status=(143,),
            says="terminated|stopped by a signal", kept=kept, again=_RESUMED,
        )
        for what, place, flags, kept in (
            ("compiles", _COMPILES, "--compile", ()),
            ("loads", _LOADS, "", ()),
            ("trains with workers", _STEPS, _WORKER, ("out/last.pt",)),
            ("evaluates", _EVALUATES, "", ()),
            ("draws", _DRAWS, "", ("out/last.pt",)),
        )
    ),
    *(
        Case(
            name=f"{signum.name} while {entry} is measured",
            command="bench-throughput",
            faults=(hooked(place, number, f"send={signum.name}"),), flags="--only roofline,loaders",
            status=(128 + signum,), kept=("out/report.json", "out/report.html"), again=_ELSEWHERE,
        )
        for entry, place, number in (
            ("the baseline", "fast_train.benchmarks.peers.notes_dataloader:NotesDataLoader.epoch", 2),
            ("a DataLoader", "fast_train.benchmarks.peers.tuned_dataloader:TunedDataLoader.epoch", 2),
            ("our DataLoader", "fast_train.pipeline.loaders.torch_loader:TorchLoader._batches", 2),
        )
        for signum in (signal.SIGTERM, signal.SIGINT)
    ),
    Case(
        name="Ctrl-C while it trains",
        command="fast-train", faults=(sent(signal.SIGINT, "epoch 1"),), flags=f"--epochs 100000 {_WORKER}",
        status=(130,), says="saved", kept=("out/last.pt",), again=_STOPPED,
    ),
    Case(
        name="the terminal is closed",
        command="fast-train", faults=(closed_terminal("epoch 1"),), flags="--epochs 100000",
        status=(129,), kept=("out/last.pt",), again=_STOPPED,
    ),
)  # fmt: skip

OTHERS = (
    Case(
        name="a weight is no number from the 100th step on",
        command="fast-train", faults=(hooked(_STEPS, 100, "poison"),), before="--epochs 1",
        flags=f"--epochs 60 {_RESUMED}", status=(1,), says="(?i)nan|finite", kept=("out/last.pt",),
        after=_good_checkpoint, again="",
    ),
    *(
        Case(
            name=f"the clock jumps by a day: {command}",
            command=command, faults=(preloaded(clock=86_400),), status=(0,), again=None,
            after=_finite if command == "fast-train" else lambda run: [],
        )
        for command in ("fast-train", "bench-throughput", "prep-data")
    ),
    *(
        Case(
            name=f"the set is {what} under a run of the loader {loader}",
            command="fast-train", faults=(hooked(_STEPS, 2, action),), flags=f"--loader {loader}",
            status=(0,), lines=2, again=None,
        )
        for what, action in (
            ("overwritten", _OVERWRITES), ("replaced", "replace={data}:{root}/other"), ("deleted", "delete={data}"),
        )
        for loader in ("resident", "torch --workers 1")
        if (what, loader) != ("overwritten", "torch --workers 1")
    ),
    Case(
        name="the set is overwritten under a run that reads its files",
        command="fast-train", faults=(hooked(_STEPS, 2, _OVERWRITES),), before="--epochs 1",
        flags=f"{_WORKER} {_RESUMED}", says="train.safetensors was written to while it was trained on",
        kept=("out/last.pt",), after=_one_epoch, again=None,
    ),
    *(
        Case(
            name=f"64 open files: {command} {flags}".strip(),
            command=command, faults=(few_files,), flags=flags, status=(0,), again=None,
        )
        for command, flags in (("prep-data", "--workers 2"), ("fast-train", ""), ("fast-train", _WORKER),
                               ("bench-throughput", ""))
    ),
    *(
        Case(
            name=f"{what}: {command}", command=command, faults=(fault,), status=(status,), says=says, again=None,
            quick=command == "prep-data",
        )
        for what, command, fault, status, says in (
            *(("no HOME", command, without("HOME", "XDG_CACHE_HOME"), 0, "")
              for command in ("prep-data", "fast-train", "bench-throughput")),
            *(("no temporary folder", command, no_temporary_folder, 0, "") for command in ("prep-data", "fast-train")),
            # It measures processes that write there.
            ("no temporary folder", "bench-throughput", no_temporary_folder, 2, "No usable temporary directory"),
        )
    ),
    Case(
        name="a notebook's MPLBACKEND: bench-throughput",
        command="bench-throughput", faults=(environment(MPLBACKEND="module://matplotlib_inline.backend_inline"),),
        status=(0,), kept=("out/roofline.png",), again=None,
    ),
    Case(
        name="a notebook's MPLBACKEND: fast-train",
        command="fast-train", faults=(environment(MPLBACKEND="module://matplotlib_inline.backend_inline"),),
        status=(0,), kept=("out/*.png",), again=None,
    ),
)  # fmt: skip

CASES = (*DISKS, *WORKERS, *SIGNALS, *OTHERS)
