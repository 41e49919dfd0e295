"""What a device is called, and what it can compute."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic, rather than an emulation that is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    # Intel's cores without AMX have the instructions of AVX-512 for it, and gain nothing by them: measured in
    # docs/performance.md.
    return bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not _is_intel()))


def has_tf32(device: torch.device) -> bool:
    """Whether the device has TF32, 19 bits of a float32, in its tensor cores."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def is_slow_cpu() -> bool:
    """Whether the processor trains at half the rate of two cores with AVX-512, or slower (docs/performance.md)."""
    return torch.get_num_threads() < 4 and "AVX512" not in torch.backends.cpu.get_cpu_capability()


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
