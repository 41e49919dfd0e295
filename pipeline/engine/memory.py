"""Whether a training fits the computer's memory: on Linux a process that takes too much is killed without a word.

A GPU's allocator raises an error instead of that, so this looks at trainings on the CPU.
"""

from __future__ import annotations

import copy
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_train.common.memory import free_memory
from fast_train.pipeline.errors import ConfigError

_OUT_OF_MEMORY = "the GPU is out of memory; give a smaller --batch-size, or --loader torch"
_OUT_OF_HOST_MEMORY = "the computer is out of memory; give a smaller --batch-size"
# Words of errors that torch raises as plain RuntimeErrors.
_MEMORY_ERRORS = {
    _OUT_OF_MEMORY: r"CUDA error: out of memory|CU(DNN|BLAS)_STATUS_ALLOC_FAILED|MPS backend out of memory",
    _OUT_OF_HOST_MEMORY: r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc",
}
# Torch itself, the weights, their gradients and momenta take about this besides, for networks of usual size.
_BESIDES = 1 << 30


def check_memory(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    amp: torch.dtype | None,
    *,
    share: float = 1.0,
) -> None:
    """Raise ConfigError if one eager step on the CPU can't fit: if what its forward pass keeps for its backward pass
    is more than the memory that is free. Where the system does not tell how much that is, nothing is checked.

    model: on the CPU, unchanged by this. image_shape: [C, H, W]. amp: the autocast type, None for float32. share: the
    part of the batch that the model is trained on.
    """
    free = free_memory()
    if free is None:
        return
    each = share * saved_bytes_per_image(model, image_shape, amp)
    if each * batch_size <= free:
        return
    fitting = _round_down(int((free - _BESIDES) * 0.9 / each))
    advice = f"give --batch-size {fitting}" if fitting > 1 else "train a smaller network or on smaller images"
    raise ConfigError(
        f"a step on {batch_size:,} images takes more than {each * batch_size / 1e9:,.1f} GB of memory, "
        f"and {free / 1e9:,.1f} GB are free; {advice}"
    )


def saved_bytes_per_image(model: nn.Module, image_shape: tuple[int, int, int], amp: torch.dtype | None) -> int:
    """Bytes that an eager forward pass on the CPU keeps, an image of the batch, until the backward pass.

    By two passes of different size, since some of what is kept, such as weights cast to ``amp``, is kept once a batch.
    """
    # A copy: the passes change the running statistics.
    model = copy.deepcopy(model).train()
    small, large = (_saved_bytes(model, torch.zeros(n, *image_shape), amp) for n in (2, 4))
    return (large - small) // 2


def _saved_bytes(model: nn.Module, images: Tensor, amp: torch.dtype | None) -> int:
    images = images.to(amp or torch.float32, memory_format=torch.channels_last)
    # Tensors are kept here too, so that no address is used twice.
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
            logits = model(images)
        F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.long))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _round_down(number: int) -> int:
    """To one digit and zeros: 735 is 700."""
    unit = 10 ** (len(str(max(number, 1))) - 1)
    return number // unit * unit


def memory_error(error: Exception) -> ConfigError | None:
    """What to tell the user of an error that lack of memory has caused; None for one of another cause."""
    hint: str | None = None
    cause: BaseException | None = error
    while hint is None and cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            hint = _OUT_OF_MEMORY
        elif isinstance(cause, MemoryError):
            hint = _OUT_OF_HOST_MEMORY
        elif isinstance(cause, RuntimeError):
            hint = next((hint for hint, words in _MEMORY_ERRORS.items() if re.search(words, str(cause))), None)
        cause = cause.__cause__ or cause.__context__
    if hint is None:
        return None
    told = ConfigError(hint)
    told.__cause__ = error
    return told
