"""What a report was measured on, and whether something disturbed it: fingerprint, and a watch while it goes on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fast_train.common.cores import usable_cores
from fast_train.common.text import one_line

_PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "pillow", "ffcv", "nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    *("webdataset", "mosaicml-streaming"),
)
# More load than this part of the cores before a start is another program's.
_BUSY = 0.5
# Names of NVML's throttle reasons that slow the GPU down; idling and settings of the owner do not count.
_SLOW = {
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "heat",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "heat (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
    "nvmlClocksThrottleReasonSwPowerCap": "power limit",
}


def fingerprint(device: torch.device) -> dict[str, Any]:
    """The machine, the versions and the commit, in JSON's types. It names no host and no user."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
        "commit": _commit(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _apple_name() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _apple_name() -> str | None:
    try:
        name = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(name, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _commit() -> str | None:
    """The commit of the code that runs, with ``+`` where files differ from it; None where it is not a checkout."""
    here = Path(__file__).resolve().parent
    try:
        named = _git(here, "rev-parse", "--short=12", "HEAD")
        return named + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


class Watch:
    """Looks at the GPU through NVML, and at the machine's load: before, after, and between repeats.

    Without NVML (no GPU, or no nvidia-ml-py) it says so in `record` and watches the load alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._reasons: set[str] = set()
        self._others = 0
        self._nvml, self._handle, self._absent = _open_nvml(device)
        self._load = os.getloadavg()[0]
        self._before = self._state()

    def sample(self) -> None:
        """Note throttling and other processes; called while the GPU is warm from a repeat."""
        if self._nvml is None:
            return
        nvml = self._nvml
        try:
            active = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
            self._reasons |= {text for name, text in _SLOW.items() if active & getattr(nvml, name, 0)}
            running = nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            # One of them is this one; its number may be another one inside a container.
            self._others = max(self._others, len(running) - 1)
        except nvml.NVMLError as error:
            self._absent = one_line(error)

    def record(self) -> dict[str, Any]:
        """All that was seen, in JSON's types."""
        return {
            "nvml": self._absent or "watched",
            "before": self._before,
            "after": self._state(),
            "throttled": sorted(self._reasons),
            "other_processes": self._others,
            "load_before": self._load,
        }

    def warnings(self) -> list[str]:
        """What a reader must know before trusting the figures."""
        found = []
        if self._reasons:
            found.append(f"the GPU was throttled while it was measured: {', '.join(sorted(self._reasons))}")
        if self._others:
            found.append(f"{self._others} other process(es) used the GPU while it was measured")
        cores = os.cpu_count() or 1
        if self._load > _BUSY * cores:
            found.append(
                f"the machine was busy before the start: a load of {self._load:.1f} on {cores} cores in the last minute"
            )
        return found

    def _state(self) -> dict[str, Any] | None:
        """Clocks in MHz, temperature in °C, power in W, driver."""
        if self._nvml is None:
            return None
        nvml, handle = self._nvml, self._handle
        try:
            return {
                "driver": nvml.nvmlSystemGetDriverVersion(),
                "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "largest_sm_clock_mhz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
                "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            }
        except nvml.NVMLError as error:
            return {"error": one_line(error)}


def _open_nvml(device: torch.device) -> tuple[Any, Any, str]:
    """(module, the device's handle, why not)."""
    if device.type != "cuda":
        return None, None, "no GPU is used"
    try:
        import pynvml
    except ImportError:
        return None, None, "nvidia-ml-py is not installed: clocks and throttling were not watched"
    try:
        pynvml.nvmlInit()
        # By UUID: NVML knows nothing of CUDA_VISIBLE_DEVICES.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()), ""
    except pynvml.NVMLError as error:
        return None, None, f"NVML can't be used: {one_line(error)}"
