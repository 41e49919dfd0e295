"""The DALI graph behind the loader. Imports DALI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from fast_train.pipeline.loaders.native import NativeAugment, NativeCrop

#: Called before each batch for the arrays of the graph's inputs; raises StopIteration at the end of the epoch.
Source = Callable[[], list[Any]]
_PREFETCH = 2
_TYPES: dict[type, Any] = {np.int32: types.INT32, np.float32: types.FLOAT}


def build_graph(
    source: Source,
    image_shape: Sequence[int],
    *,
    batch_size: int,
    encoded: bool,
    native: NativeAugment | None,
    threads: int,
    device: torch.device,
) -> Pipeline:
    """A pipeline over images of one shape, whose outputs are images, labels and indices on ``device``.

    Raw images go through whole, a batch as one sample: DALI's work on a sample costs more than a small image's pixels.
    Decoding and native augmentation take image by image.
    """
    by_image = encoded or native is not None
    gpu = device.type == "cuda"
    graph = _pipeline(batch_size if by_image else 1, threads, device)
    # One dimension fewer by image: the first one counts the samples. A file is a row of bytes.
    image_dims = (1 if encoded else 3) if by_image else 4
    label_dims = 0 if by_image else 1
    draws = native.inputs if native is not None else []
    with graph:
        images, labels, indices, *drawn = fn.external_source(
            source=source,
            num_outputs=3 + len(draws),
            dtype=[types.UINT8, types.INT64, types.INT64] + [_TYPES[kind] for kind, _ in draws],
            ndim=[image_dims, label_dims, label_dims] + [dims for _, dims in draws],
            # The arrays are made for this batch and nobody else writes to them.
            no_copy=not gpu,
        )
        if encoded:
            kind = types.RGB if image_shape[2] == 3 else types.GRAY
            images = _decode(images, gpu, output_type=kind)
        elif gpu:
            images = images.gpu()
        if native is not None:
            images = _augment(fn.reshape(images, layout="HWC"), drawn, tuple(image_shape), native)
        if gpu:
            labels, indices = labels.gpu(), indices.gpu()
        graph.set_outputs(images, labels, indices)
    graph.build()
    return graph


def build_ragged_graph(
    source: Source, largest: int, *, batch_size: int, native: NativeCrop | None, threads: int, device: torch.device
) -> Pipeline:
    """A pipeline over image files of any shapes. largest: bytes of the pixels of the largest.

    Its outputs on ``device`` are rows of ``largest`` bytes that begin with the pixels of each, labels, indices, heights
    and widths; where DALI is to augment, the images [S, S, 3], labels and indices.
    """
    gpu = device.type == "cuda"
    graph = _pipeline(batch_size, threads, device)
    with graph:
        files, labels, indices, *numbers = fn.external_source(
            source=source,
            num_outputs=5 if native is None else 6,
            dtype=[types.UINT8, types.INT64, types.INT64] + [types.INT32] * (2 if native is None else 3),
            ndim=[1, 0, 0] + ([0, 0] if native is None else [1, 1, 0]),
            no_copy=not gpu,
        )
        if native is None:
            pixels = fn.reshape(_decode(files, gpu, output_type=types.RGB), shape=[-1], layout="")
            outputs = [fn.pad(pixels, shape=[largest]), labels, indices, *numbers]
        else:
            outputs = [_crop(files, gpu, numbers, native), labels, indices]
        graph.set_outputs(*((output.gpu() for output in outputs) if gpu else outputs))
    graph.build()
    return graph


def _pipeline(batch_size: int, threads: int, device: torch.device) -> Pipeline:
    return Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=_PREFETCH,
        # The dynamic executor leaves outputs alone for as long as a tensor refers to them.
        exec_dynamic=True,
    )


def _decode(files: Any, gpu: bool, **options: Any) -> Any:
    return fn.decoders.image(files, device="mixed" if gpu else "cpu", adjust_orientation=False, **options)


def _crop(files: Any, gpu: bool, drawn: list[Any], native: NativeCrop) -> Any:
    """Decodes only what of each image is cropped."""
    begins, shapes, mirrored = drawn
    images = fn.decoders.image_slice(
        files,
        device="mixed" if gpu else "cpu",
        adjust_orientation=False,
        output_type=types.RGB,
        start=begins,
        shape=shapes,
        axis_names="HW",
    )
    images = fn.resize(
        images, size=[native.spec.size] * 2, interp_type=types.INTERP_LINEAR, antialias=True, dtype=types.UINT8
    )
    return fn.crop_mirror_normalize(
        images,
        mirror=mirrored,
        mean=[255 * value for value in native.mean],
        std=[255 * value for value in native.std],
        dtype=types.FLOAT if native.output_dtype == torch.float32 else types.FLOAT16,
        output_layout="HWC",
    )


def _augment(images: Any, drawn: list[Any], image_shape: tuple[int, ...], native: NativeAugment) -> Any:
    crops, mirrored, *square = drawn
    if native.spec.pad and native.spec.pad_mode == "reflect":
        images, crops = _reflect(images, image_shape, native.spec.pad), crops + native.spec.pad
    images = fn.slice(
        images, start=crops, shape=image_shape[:2], axis_names="HW", out_of_bounds_policy="pad", fill_values=0
    )
    dtype = types.FLOAT if native.output_dtype == torch.float32 else types.FLOAT16
    images = fn.crop_mirror_normalize(
        images,
        mirror=mirrored,
        mean=[255 * value for value in native.mean],
        std=[255 * value for value in native.std],
        # DALI's erase has no float16 on a GPU.
        dtype=types.FLOAT if square else dtype,
        output_layout="HWC",
    )
    if square:
        # Behind normalisation: the mean colour is zero there.
        erased = fn.erase(images, anchor=square[0], shape=square[1], axis_names="HW", fill_value=0)
        images = fn.cast(erased, dtype=dtype)
    return images


def _reflect(images: Any, image_shape: tuple[int, ...], pad: int) -> Any:
    """Images [height + 2 * pad, width + 2 * pad, channels]: around each one its reflection, without the edge itself."""
    for axis, size in zip("HW", image_shape[:2], strict=True):
        edges = [fn.slice(images, start=[first], shape=[pad], axis_names=axis) for first in (1, size - 1 - pad)]
        before, behind = (fn.flip(edge, vertical=int(axis == "H"), horizontal=int(axis == "W")) for edge in edges)
        images = fn.cat(before, images, behind, axis_name=axis)
    return images
