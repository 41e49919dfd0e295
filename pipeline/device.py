"""What a device is called, and what it can compute."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from fast_train.common.cores import usable_cores

# Kinds of devices whose images the CPU prepares.
_FED_BY_CPU = {"mps"}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple's GPU"
    cores = usable_cores()
    return f"CPU with {cores} usable core{'s'[: cores != 1]}"


def data_device(device: torch.device) -> torch.device:
    """Where images are loaded and augmented for a network on ``device``: there too, but for Apple's GPU on the CPU,
    which shares its memory. So the pixels are those of the CPU, and no kernel and no loader knows that GPU."""
    return torch.device("cpu") if device.type in _FED_BY_CPU else device


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic, rather than an emulation that is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Nobody has measured yet what Apple's GPU gains by it.
    if device.type == "mps" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    # Intel's cores without AMX have the instructions of AVX-512 for it, and gain nothing by them: measured in
    # docs/performance.md.
    return bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not _is_intel()))


def has_tf32(device: torch.device) -> bool:
    """Whether the device has TF32, 19 bits of a float32, in its tensor cores."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def is_slow_cpu() -> bool:
    """Whether the processor trains at half the rate of two cores with AVX-512, or slower (docs/performance.md)."""
    return usable_cores() < 4 and "AVX512" not in torch.backends.cpu.get_cpu_capability()


def gains_by(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether half precision, ``torch.bfloat16`` or ``torch.float16``, may be faster there than float32."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return computes_bf16(device) if dtype == torch.bfloat16 else "avx512_fp16" in _cpuinfo()


def _is_intel() -> bool:
    return "GenuineIntel" in _cpuinfo()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
