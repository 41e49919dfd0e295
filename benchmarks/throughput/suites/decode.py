"""Decoding alone: JPEG files in memory to pixels, by each decoder that loaders use, on one thread and on all."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.feeds import DALI, FFCV, OURS, PILLOW, TORCHVISION
from fast_train.benchmarks.instrument.timing import FAILURES
from fast_train.benchmarks.throughput.records import DecodeDetails
from fast_train.benchmarks.throughput.suites import ThroughputSettings
from fast_train.common.cores import usable_cores
from fast_train.common.text import one_line
from fast_train.data_prep.formats.decode import is_jpeg
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.loaders.image_files import ImageFiles

SUITE = "decode"
#: After the name of a decoder that works there.
ON_GPU = " on the GPU"
# Of each thread in a repeat; a GPU takes them all at once.
_IMAGES = 32
_FEWEST = 64


@dataclass(frozen=True)
class _Sample:
    """JPEG files of the training split: their numbers, their bytes, heights and widths."""

    prepared: PreparedSet
    numbers: list[int]
    files: list[NDArray[np.uint8]]
    heights: list[int]
    widths: list[int]

    @property
    def pixels(self) -> float:
        """Of an image, in the mean."""
        return sum(h * w for h, w in zip(self.heights, self.widths, strict=True)) / len(self.files)

    @property
    def bytes(self) -> float:
        """Of a file, in the mean."""
        return sum(map(len, self.files)) / len(self.files)


# Decodes the image at a place of the sample.
_One = Callable[[int], object]


def row_name(decoder: str, threads: int) -> str:
    return f"{decoder}, {threads} thread{'s'[: threads != 1]}"


def run(bench: Bench[ThroughputSettings]) -> None:
    """A row for each decoder and number of threads: images a second."""
    if bench.prepared.manifest.ragged is None:
        bench.skip(SUITE, "the suite", "the images of this set have one shape and are stored as pixels")
        return
    sample = _sample(bench.prepared)
    if not sample.files:
        bench.skip(SUITE, "the suite", "the set holds no JPEG file")
        return
    cases: list[Measured[DecodeDetails]] = []

    def add(decoder: str, threads: int, build: Callable[[], Callable[[], object]]) -> None:
        """A case of the call that ``build`` makes, which decodes the sample once; or the reason why there is none."""
        name = row_name(decoder, threads)
        try:
            rate = bench.rate(build(), items=len(sample.files))
        except (ImportError, *FAILURES) as error:
            bench.skip(SUITE, name, one_line(error))
            return
        details = DecodeDetails(
            decoder=decoder, threads=threads, pixels_per_image=sample.pixels, bytes_per_image=sample.bytes
        )
        cases.append(Measured(name=name, run=rate, details=details))

    with ExitStack() as stack:
        for threads in sorted({1, usable_cores()}):
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="decode"))
            for decoder, build in _DECODERS.items():
                add(decoder, threads, partial(_pooled, build, sample, pool, threads))
            add(DALI, threads, partial(_dali, sample, threads))
        if bench.device.type == "cuda":
            add(TORCHVISION + ON_GPU, usable_cores(), partial(_torchvision_gpu, sample, bench.device))
            add(DALI + ON_GPU, usable_cores(), partial(_dali, sample, usable_cores(), bench.device))
        bench.measure(SUITE, "decoding", cases)


def _sample(prepared: PreparedSet) -> _Sample:
    encoded = prepared.encoded("train")
    wanted = max(_IMAGES * usable_cores(), _FEWEST)
    order = np.random.default_rng(0).permutation(prepared.size("train"))
    chosen = [i for i in order[: 2 * wanted].tolist() if is_jpeg(encoded.file(i))][:wanted]
    return _Sample(
        prepared,
        chosen,
        # Copies in memory: the disk is no part of it.
        [np.array(encoded.file(i)) for i in chosen],
        encoded.heights[chosen].tolist(),
        encoded.widths[chosen].tolist(),
    )


def _pooled(
    build: Callable[[_Sample], _One], sample: _Sample, pool: ThreadPoolExecutor, threads: int
) -> Callable[[], object]:
    """Decodes the sample in parts, on the pool's threads."""
    one = build(sample)
    places = range(len(sample.files))
    parts = [places[k :: 4 * threads] for k in range(4 * threads)]

    def decode(part: Sequence[int]) -> None:
        for place in part:
            one(place)

    return lambda: list(pool.map(decode, parts))


def _pillow(sample: _Sample) -> _One:
    from PIL import Image

    def one(place: int) -> object:
        with Image.open(io.BytesIO(sample.files[place].data)) as image:
            return np.asarray(image.convert("RGB"))

    return one


def _ours(sample: _Sample) -> _One:
    """As the loaders `resident` and `torch` do it, reading the file from the system's cache included."""
    files = ImageFiles(sample.prepared, "train")

    def one(place: int) -> object:
        number = sample.numbers[place]
        pixels = np.empty(int(files.shapes.sizes[number]), dtype=np.uint8)
        files.decode(np.array([number]), pixels)
        return pixels

    return one


def _torchvision(sample: _Sample) -> _One:
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.from_numpy(file) for file in sample.files]
    return lambda place: decode_jpeg(files[place], mode=ImageReadMode.RGB)


def _ffcv(sample: _Sample) -> _One:
    """FFCV's own compiled function, which its recipes take."""
    try:
        # Not FFCV itself, which takes Numba seconds to import.
        libffcv = importlib.import_module("fast_train.pipeline.loaders.ffcv_reader").libffcv
    except ImportError as error:
        raise ValueError("ffcv is not installed; pip install 'fast-train[ffcv]'") from error

    def one(place: int) -> object:
        height, width = sample.heights[place], sample.widths[place]
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        libffcv.imdecode(sample.files[place], pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        return pixels

    return one


_DECODERS: dict[str, Callable[[_Sample], _One]] = {
    PILLOW: _pillow,
    OURS: _ours,
    TORCHVISION: _torchvision,
    FFCV: _ffcv,
}


def _torchvision_gpu(sample: _Sample, device: torch.device) -> Callable[[], object]:
    """nvJPEG, of the whole sample at once."""
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.from_numpy(file) for file in sample.files]
    return lambda: decode_jpeg(files, mode=ImageReadMode.RGB, device=device)


def _dali(sample: _Sample, threads: int, device: torch.device | None = None) -> Callable[[], object]:
    """A pipeline that does nothing else; on a GPU its mixed decoder. device: None for the CPU."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise ValueError("DALI is not installed; pip install 'fast-train[dali]'") from error

    @pipeline_def(
        batch_size=len(sample.files),
        num_threads=threads,
        device_id=None if device is None else device.index or 0,
        prefetch_queue_depth=1,
    )
    def graph() -> Any:
        files = fn.external_source(source=lambda: sample.files, batch=True)
        return fn.decoders.image(files, device="cpu" if device is None else "mixed", output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    return lambda: pipeline.run()
