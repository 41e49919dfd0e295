"""Memory for a whole split: the device's, or the computer's, page-locked, which a kernel reads over the bus."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from fast_train.common.memory import free_memory
from fast_train.pipeline.config.settings import ResidentMemory

# `auto` leaves the rest of the device's memory to the network.
_SHARE = 0.5


class Room:
    """``data``: uint8 [size] on ``device``. ``host``: the same bytes as the CPU writes them; None where they lie in a
    CUDA device's own memory."""

    def __init__(self, size: int, what: str, device: torch.device, memory: ResidentMemory) -> None:
        """Raises ValueError where ``size`` bytes are not free. what: is to lie there."""
        self.host: Tensor | None = None
        if device.type == "cuda" and choose(size, what, device, memory) == "device":
            self.data = torch.empty(size, dtype=torch.uint8, device=device)
            return
        if device.type != "cuda":
            _check_host(size, what)
        self.host = torch.empty(size, dtype=torch.uint8)
        self.data = self.host if device.type != "cuda" else on_device(self.host, device)

    def write(self, pixels: Tensor, at: int = 0) -> None:
        """Put bytes that lie on the CPU, page-locked for a CUDA device, in their place."""
        target = self.data if self.host is None else self.host
        target[at : at + len(pixels)].copy_(pixels, non_blocking=True)


def choose(size: int, what: str, device: torch.device, memory: ResidentMemory) -> ResidentMemory:
    """``device`` or ``host``: where ``size`` bytes go. ValueError where there is no room; what: is to lie there."""
    on_device, on_host = free_on_device(device, size), free_memory()
    fits_host = on_host is None or size <= on_host
    if memory != "host" and size <= on_device and (memory == "device" or size <= _SHARE * on_device or not fits_host):
        return "device"
    if memory != "device" and fits_host:
        return "host"
    places = {"device": (device, on_device), "host": ("the computer", on_host)}
    free = " and ".join(
        f"{name} has {count / 1e9:.1f} GB free"
        for place, (name, count) in places.items()
        if memory in ("auto", place) and count is not None
    )
    raise ValueError(f"{what} takes {size / 1e9:.1f} GB, {free}; use --loader torch")


def _check_host(size: int, what: str) -> None:
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(f"{what} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; use --loader torch")


def free_on_device(device: torch.device, wanted: int) -> int:
    """Bytes that a CUDA device has free; where they are fewer than wanted, with what torch keeps for itself."""
    free, _ = torch.cuda.mem_get_info(device)
    if wanted > _SHARE * free:
        # What this process freed before may still be kept by torch for its next tensors.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    return int(free)


class _PageLocked:
    """Host memory that is page-locked and mapped for the devices for as long as this lives; to torch, device memory.

    With unified addressing, which is everywhere where torch has CUDA, the address is the same on both sides.
    torch's own page-locked memory comes in powers of two, twice of what a large split needs.
    """

    def __init__(self, host: Tensor, device: torch.device) -> None:
        size = host.numel()
        with torch.cuda.device(device):
            # 0, the default: with unified addressing mapped, and for every device.
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), size, 0))
        # Not at exit: then the system does it.
        weakref.finalize(self, _unlock, host, device).atexit = False
        #: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size,), "typestr": "|u1", "data": (host.data_ptr(), False), "strides": None, "version": 3,
        }  # fmt: skip


def _unlock(host: Tensor, device: torch.device) -> None:
    # Work that is queued may still read it.
    torch.cuda.synchronize(device)
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(host.data_ptr()))


def on_device(host: Tensor, device: torch.device) -> Tensor:
    """The same bytes, uint8 [size], for kernels of a CUDA device: they are read over the bus.

    Raises ValueError where the system lets so much memory not be page-locked.
    """
    try:
        # The tensor holds what it is made from.
        return torch.as_tensor(_PageLocked(host, device), device=device)
    except torch.cuda.CudaError as error:
        raise ValueError(
            f"{host.numel() / 1e9:.1f} GB of memory can't be page-locked ({error}); use --loader torch"
        ) from error
