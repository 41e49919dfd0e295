"""How a run executes on this machine: device, autocast type, compilation, graph; settings left open are chosen."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fast_train.common.cores import usable_cores
from fast_train.common.phases import phase
from fast_train.pipeline.config.architectures import Fusion
from fast_train.pipeline.config.settings import RunConfig, check_device
from fast_train.pipeline.device import computes_bf16, device_name, gains_by, has_tf32
from fast_train.pipeline.engine.trial import fault
from fast_train.pipeline.errors import ConfigError
from fast_train.pipeline.ranks import current

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """amp: the autocast type, None for float32. tf32: whether float32 convolutions are computed in TF32. graph: the
    whole step as one CUDA graph. compile_mode: of torch.compile. fuse: see `pipeline.models.build_model`. less_fused:
    why it is ``norm`` where ``cudnn`` was asked for. channels_last: the memory format of weights and images. threads:
    of a step on the CPU; None for the fastest number, which `pipeline.engine.threads` finds. passed_over: why Apple's
    GPU was not chosen, where there is one."""

    device: torch.device
    amp: torch.dtype | None
    tf32: bool
    compile: bool
    graph: bool
    compile_mode: str
    fuse: Fusion
    channels_last: bool
    threads: int | None
    passed_over: str | None = None
    less_fused: str | None = None

    @property
    def image_dtype(self) -> torch.dtype:
        """The type that augmentation writes: what the first convolution computes in."""
        return self.amp or torch.float32

    @property
    def dtype_name(self) -> str:
        """What convolutions compute in: ``bfloat16``, ``float16``, ``float32`` or ``TF32``."""
        return "TF32" if self.tf32 else str(self.image_dtype).removeprefix("torch.")

    def describe(self) -> str:
        ranks = current().size
        parts = [f"{ranks} ranks, each on {device_name(self.device)}" if ranks > 1 else device_name(self.device)]
        if self.device.type == "cpu" and self.threads is not None:
            parts += [f"steps of {self.threads} thread{'s'[: self.threads != 1]}"]
        parts += [self.dtype_name]
        mode = "" if self.compile_mode == "default" else f" ({self.compile_mode})"
        parts += [f"compiled{mode}"] if self.compile else []
        parts += [] if self.fuse == "none" else [f"fused {self.fuse}"]
        parts += ["one CUDA graph a step"] if self.graph else []
        return ", ".join(parts)

    def notes(self) -> list[str]:
        """What makes the run slower than it could be here, a line each."""
        found = []
        if self.passed_over is not None:
            found.append(f"note: this runs on the CPU and not on Apple's GPU: {self.passed_over}")
        if self.amp is not None and not gains_by(self.amp, self.device):
            found.append(
                f"note: this CPU only emulates {self.dtype_name}, far slower than float32; leave out --amp, or give "
                "--amp auto"
            )
        if self.less_fused is not None:
            found.append(f"note: --fuse cudnn does not work here, so this is --fuse norm: {self.less_fused}")
        cores = usable_cores()
        if self.device.type == "cpu" and self.threads is not None and self.threads > cores:
            found.append(
                f"note: steps of {self.threads} threads are slow on {cores} usable core{'s'[: cores != 1]}; "
                f"--threads {cores} is faster, and changes the last bits of the results"
            )
        return found


def resolve_runtime(run: RunConfig) -> Runtime:
    """Choose what ``run`` leaves open; ConfigError for what this machine can't do."""
    device = resolve_device(run.device)
    cuda = device.type == "cuda"
    if run.graph and not cuda:
        raise ConfigError("--graph needs a CUDA device; give --no-graph")
    if cuda:
        _check_triton_builds()
    if device.type == "mps" and run.deterministic:
        raise ConfigError("--deterministic: PyTorch promises no equal bits on Apple's GPU; add --device cpu")
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if run.compile and not compiler:
        raise ConfigError("--compile needs a C++ compiler; install one (apt-get install g++) or add --no-compile")
    if run.compile and not (headers := _python_headers()).exists():
        raise ConfigError(
            f"--compile needs Python's headers, and {headers} is not there; install them (apt-get install python3-dev) "
            "or add --no-compile"
        )
    # Triton, which torch.compile generates code for, knows no older GPU.
    generates = cuda and torch.cuda.get_device_capability(device) >= (7, 0)
    if run.compile and device.type != "cpu" and not generates:
        raise ConfigError(f"torch.compile can't generate code for {device_name(device)}; add --no-compile")
    compiled = bool(compiler) and generates if run.compile is None else run.compile
    amp = _resolve_amp(run.amp, device)
    if run.compile_mode != "default" and not compiled:
        raise ConfigError(f"--compile-mode {run.compile_mode} needs a compiled step; add --compile, or leave it out")
    less_fused = _why_no_cudnn(device, amp) if run.fuse == "cudnn" else None
    return Runtime(
        device=device,
        amp=amp,
        tf32=run.tf32 and amp is None and has_tf32(device),
        compile=compiled,
        graph=cuda if run.graph is None else run.graph,
        compile_mode=run.compile_mode,
        fuse="norm" if less_fused else run.fuse,
        # The backward pass of BatchNorm is wrong there: https://github.com/pytorch/pytorch/issues/175189
        channels_last=run.channels_last and device.type != "mps",
        threads=_resolve_threads(run, device),
        passed_over=_mps_fault() if run.device == "auto" and device.type == "cpu" and _has_mps() else None,
        less_fused=less_fused,
    )


def _why_no_cudnn(device: torch.device, amp: torch.dtype | None) -> str | None:
    """Triton, which not every build of torch brings, is imported only where there is a GPU."""
    if device.type != "cuda":
        return "it needs a GPU"
    from fast_train.kernels.convolution_cudnn import why_not

    return why_not(device, amp or torch.float32)


def _resolve_threads(run: RunConfig, device: torch.device) -> int | None:
    """A fixed number, or None where it is to be found by measuring."""
    cores = usable_cores()
    # The steps of ranks wait for each other: they can't be timed one by one.
    measured = device.type == "cpu" and not run.deterministic and cores > 1 and current().size == 1
    return run.threads or (None if measured else cores)


def fix_threads(run: RunConfig) -> RunConfig:
    """A deterministic run on the CPU has its number of threads in its record, and keeps it where it goes on: the last
    bits of a sum depend on how many threads take part."""
    if not run.deterministic or resolve_device(run.device).type != "cpu":
        return run
    return dataclasses.replace(run, threads=run.threads or usable_cores())


def _check_triton_builds() -> None:
    """ConfigError where Triton can't build what launches its kernels, such as the augmentation's."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = _python_headers()
    if not compiler or not headers.exists():
        lacking = f"{headers} is not there" if compiler else "there is no C compiler"
        raise ConfigError(
            f"the GPU's kernels are built with a C compiler and Python's headers, and {lacking}; install both "
            "(apt-get install gcc python3-dev) or add --device cpu"
        )


def _python_headers() -> Path:
    """Where Triton and torch.compile look for them: Debian's own scheme has none."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    return Path(sysconfig.get_paths(scheme)["include"], "Python.h")


def resolve_device(name: str) -> torch.device:
    """The device that a setting names, of several ranks the one that is this one's; ConfigError for one that is not
    here."""
    check_device(name)
    available = torch.cuda.is_available()
    if current().joined and (name.startswith("cuda") or (name == "auto" and available)):
        return _device_of_rank(name)
    if name == "auto":
        return torch.device("cuda" if available else "mps" if _has_mps() and not _mps_fault() else "cpu")
    device = torch.device(name)
    numbered = available and (device.index or 0) < torch.cuda.device_count()
    if not {"cpu": True, "cuda": numbered, "mps": _has_mps()}[device.type]:
        raise ConfigError(f"no device '{name}' is visible here; give --device auto to use what there is")
    if device.type == "mps" and (reason := _mps_fault()):
        raise ConfigError(f"--device mps: {reason}; give --device cpu")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _mps_fault() -> str | None:
    """Why Apple's GPU can't train here, in a few words; None where it can."""
    return "several ranks can't share it" if current().joined else fault()


def _device_of_rank(name: str) -> torch.device:
    ranks, devices = current(), torch.cuda.device_count()
    if ranks.local_size > devices:
        raise ConfigError(
            f"{ranks.local_size} ranks on a machine with {devices} GPU{'s'[: devices != 1]}; give torchrun "
            f"--nproc-per-node {devices or 1}, or add --device cpu"
        )
    if ":" in name and ranks.local_size > 1:
        raise ConfigError(f"--device {name} is one GPU, and each rank has its own; give --device cuda")
    return torch.device(name if ":" in name else f"cuda:{ranks.local_rank}")


def _resolve_amp(name: str, device: torch.device) -> torch.dtype | None:
    if name == "off":
        return None
    if name == "auto":
        if computes_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    if device.type == "mps" and (reason := fault(_DTYPES[name])):
        raise ConfigError(f"--amp {name}: {reason}; give --amp off, or --device cpu")
    if name == "bf16" and device.type == "cuda" and not computes_bf16(device):
        raise ConfigError(f"{device_name(device)} has no bfloat16 arithmetic; use --amp fp16")
    return _DTYPES[name]


@contextmanager
def running(run: RunConfig) -> Iterator[Runtime]:
    """How ``run`` executes on this machine; inside of the block, torch's process-wide switches are set for it."""
    with phase("device"):
        runtime = resolve_runtime(run)
        # A GPU's context takes a part of a second, which whatever is first there would pay.
        torch.zeros(1, device=runtime.device)
    threads, convolutions = torch.get_num_threads(), torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    allow_tf32, benchmark = convolutions.allow_tf32, convolutions.benchmark
    try:
        apply_global_flags(run, runtime)
        yield runtime
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        convolutions.allow_tf32, convolutions.benchmark = allow_tf32, benchmark


def apply_global_flags(run: RunConfig, runtime: Runtime) -> None:
    """Set torch's process-wide switches for this run, to stay."""
    device = runtime.device
    torch.set_num_threads(runtime.threads or usable_cores())
    # Read by torch.compile, which counts the machine's cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(usable_cores(), 32)))
    if device.type == "cuda" and device.index is not None:
        # The streams of the run are those of the current device.
        torch.cuda.set_device(device)
    if run.deterministic:
        # Read by cuBLAS when it starts; without it, its deterministic mode refuses to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = run.tf32
    torch.backends.cudnn.benchmark = device.type == "cuda" and not run.deterministic
