"""Fused augmentation: gather, random crop, horizontal flip, colours, cutout, normalisation, cast, in one pass.

What a sample gets is a pure function of (seed, epoch, index of the sample), so it depends on neither the batch,
the loader, the number of workers nor a restart. Bytes become numbers through a table of 256 x C output values:
the reference, the CPU's code and the Triton kernel read the same table, so they agree to the last bit of any type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fast_train.kernels.augment_cpu import augment_cpu
from fast_train.kernels.checks import DTYPES
from fast_train.kernels.spec import AugmentSpec, check_reflection, check_seed


def normalisation_table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """The output value of each byte in each channel, ``(byte / 255 - mean) / std``: [256, C] of ``dtype``.

    mean, std: per channel, in units where byte 255 is 1. Computed in float64 on the CPU and rounded once, so it
    is the same table on every device.
    """
    if dtype not in DTYPES:
        raise ValueError(f"cannot augment to {dtype}; choose from float32, bfloat16, float16")
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one number per channel, std above 0")
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    centred = levels - torch.tensor(mean, dtype=torch.float64)
    return (centred / torch.tensor(std, dtype=torch.float64)).to(dtype).to(device)


def augment(
    images: Tensor,
    indices: Tensor,
    table: Tensor,
    *,
    spec: AugmentSpec,
    seed: int,
    epoch: Tensor | int,
    gather: bool = False,
) -> Tensor:
    """Augment and normalise a batch.

    images: uint8 [M, H, W, C]. indices: int64 [N], the samples' numbers in their split. table: [256, C] from
    `normalisation_table`, its dtype is the output's. All three contiguous. epoch: int, or an int64 0-D tensor on
    the images' device, read when the kernel runs, so that a captured graph can be replayed for a later epoch.
    gather: image i of the batch is ``images[indices[i]]`` (``images`` is the whole split) if True, else
    ``images[i]`` (``images`` is the batch, M = N).

    Returns [N, C, H, W] in channels_last memory. Raises ValueError on shapes, dtypes or devices that don't fit.
    Triton runs it on CUDA devices, PyTorch (`kernels.augment_cpu`) elsewhere.
    """
    check_seed(seed)
    _check_inputs(images, indices, table, spec, gather)
    if not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, dtype=torch.int64, device=images.device)
    if images.is_cuda:
        # Imported where it runs: not every build of torch brings Triton, and it takes a while.
        from fast_train.kernels.augment_triton import augment_triton

        return augment_triton(images, indices, table, spec=spec, seed=seed, epoch=epoch, gather=gather)
    return augment_cpu(images, indices, table, spec=spec, seed=seed, epoch=epoch, gather=gather)


def _check_inputs(images: Tensor, indices: Tensor, table: Tensor, spec: AugmentSpec, gather: bool) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(f"images must be contiguous uint8 [M, H, W, C], not {images.dtype} {tuple(images.shape)}")
    if indices.dtype != torch.int64 or indices.dim() != 1 or not indices.is_contiguous():
        raise ValueError(f"indices must be contiguous int64 [N], not {indices.dtype} {tuple(indices.shape)}")
    if not gather and len(images) != len(indices):
        raise ValueError(f"{len(images)} images for {len(indices)} indices; without gather they go in pairs")
    if table.shape != (256, images.shape[3]) or table.dtype not in DTYPES or not table.is_contiguous():
        raise ValueError(f"table must be contiguous [256, {images.shape[3]}], not {table.dtype} {tuple(table.shape)}")
    if not images.device == indices.device == table.device:
        raise ValueError(f"images, indices, table lie on {images.device}, {indices.device}, {table.device}")
    check_reflection(spec, *images.shape[1:3])
