"""Fused cropping and resizing of images of any shapes: crop, resize, flip, colours, erasing, normalisation, cast.

What a sample gets is a pure function of (seed, epoch, index of the sample). Boxes and factors are drawn, pixels resized
and colours changed in whole numbers, and bytes become values through a table: the reference, the CPU's code and the
Triton kernels agree to the last bit. The resizing is Pillow's: ``image.crop(box).resize((S, S), BILINEAR)``, along
the rows first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fast_train.kernels.checks import DTYPES
from fast_train.kernels.resample import Resampling, resampling
from fast_train.kernels.resized_crop_reference import Ragged
from fast_train.kernels.spec import CropSpec, check_seed

__all__ = ["Ragged", "Resampling", "resampling", "resized_crop"]


def resized_crop(
    images: Ragged,
    indices: Tensor,
    table: Tensor,
    tables: Resampling,
    *,
    spec: CropSpec,
    seed: int,
    epoch: Tensor | int,
    gather: bool = False,
) -> Tensor:
    """Crop, resize, change and normalise a batch.

    images: of any shapes, none with more than 2**26 pixels or sides longer than ``tables`` is made for. indices: int64
    [N], the samples' numbers in their split. table: [256, C] from `kernels.augment.normalisation_table`, its dtype is
    the output's. tables: `resampling` of ``spec``. epoch: int, or an int64 0-D tensor on the images' device, read when
    the kernel runs. gather: image i of the batch is number ``indices[i]`` of ``images`` if True, else number i.

    Returns [N, C, S, S] in channels_last memory. Raises ValueError on shapes, dtypes or devices that don't fit; the
    images' shapes themselves are trusted, as looking at them would wait for the device. On a CPU raises IndexError for
    an index beyond the images, if ``gather``.
    Triton runs it on CUDA devices, Numba (`kernels.resized_crop_cpu`) elsewhere.
    """
    check_seed(seed)
    _check_inputs(images, indices, table, tables, spec, gather)
    if not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, dtype=torch.int64, device=indices.device)
    # Imported where they run: Triton and Numba take a while.
    if indices.is_cuda:
        from fast_train.kernels.resized_crop_triton import resized_crop_triton as run
    else:
        from fast_train.kernels.resized_crop_cpu import resized_crop_cpu as run
    return run(images, indices, table, tables, spec=spec, seed=seed, epoch=epoch, gather=gather)


def _check_inputs(
    images: Ragged, indices: Tensor, table: Tensor, tables: Resampling, spec: CropSpec, gather: bool
) -> None:
    count = len(images.offsets)
    expected = {"data": torch.uint8, "offsets": torch.int64, "heights": torch.int32, "widths": torch.int32}
    for name, dtype in expected.items():
        tensor = getattr(images, name)
        if tensor.dtype != dtype or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous {dtype} of one axis, not {tensor.dtype} {tuple(tensor.shape)}")
        if name != "data" and len(tensor) != count:
            raise ValueError(f"{name} has {len(tensor)} numbers for {count} images")
    if indices.dtype != torch.int64 or indices.dim() != 1 or not indices.is_contiguous():
        raise ValueError(f"indices must be contiguous int64 [N], not {indices.dtype} {tuple(indices.shape)}")
    if not gather and count != len(indices):
        raise ValueError(f"{count} images for {len(indices)} indices; without gather they go in pairs")
    if table.dim() != 2 or len(table) != 256 or table.dtype not in DTYPES or not table.is_contiguous():
        raise ValueError(f"table must be contiguous [256, C], not {table.dtype} {tuple(table.shape)}")
    if spec.colour and table.shape[1] != 3:
        raise ValueError(f"colours of {table.shape[1]} channels can't be changed; they need red, green and blue")
    if tables.firsts.shape[1] != spec.size:
        raise ValueError(f"tables are of size {tables.firsts.shape[1]}, the crops of {spec.size}; make them anew")
    devices = {str(tensor.device) for tensor in (*images, indices, table, *tables)}
    if len(devices) > 1:
        raise ValueError(f"images, indices and tables lie on {' and '.join(sorted(devices))}; move them to one device")
