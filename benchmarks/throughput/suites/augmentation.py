"""The augmentation alone: batches gathered out of the split in device memory, against the copy bandwidth.

Of images that keep their own shapes: crop, resize and the rest, from decoded pixels.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.bench import Bench, Measured
from fast_train.benchmarks.instrument.flags import Settings
from fast_train.benchmarks.instrument.roofline import copy_bandwidth
from fast_train.benchmarks.instrument.timing import captured
from fast_train.benchmarks.throughput.records import AugmentationDetails
from fast_train.kernels.resized_crop import resampling
from fast_train.kernels.resized_crop_reference import crop_boxes
from fast_train.pipeline.config.settings import Config
from fast_train.pipeline.engine.build import build_augmenter
from fast_train.pipeline.loaders import RaggedView, SplitView, build_loader
from fast_train.pipeline.loaders.batch import CHANNELS

SUITE = "augmentation"
BATCHES = (512, 1024, 2048, 4096, 8192, 16384)
#: Of crops, each of which has many times the pixels.
CROP_BATCHES = (64, 256, 1024)
# More than any cache: what one call wrote must not lie there still when the next one comes.
_RING_BYTES = 256 << 20
_MOST_CALLS = 64


def run(bench: Bench[Settings]) -> None:
    """Images a second for each size of batch; ``share_of_copy`` compares its traffic with a copy's."""
    crops = bool(bench.config.crop.sizes)
    measure(bench, CROP_BATCHES if crops else BATCHES, every=3 if bench.settings.quick else 1)


def measure(bench: Bench[Settings], sizes: Sequence[int], *, every: int = 1) -> None:
    """`run` for these sizes; every: only the first of so many that the split allows."""
    size = bench.prepared.size("train")
    batches = [batch for batch in sizes if batch <= size][::every]
    for batch in sizes:
        if batch > size:
            bench.skip(SUITE, _name(batch), f"the training split holds only {size:,} images")
    if not batches:
        return
    with build_loader("resident", bench.prepared, "train", batch_size=1, device=bench.data_device) as loader:
        whole = loader.example()
        assert isinstance(whole, SplitView | RaggedView), "a resident split is seen whole"
        cases = [_case(bench, whole, batch) for batch in batches]
        rows = bench.measure(SUITE, "augmentation", cases)
    copy = copy_bandwidth(bench.result)
    if copy is not None:
        for row in rows:
            moved = row.value * row.details.bytes_per_image
            bench.amend(row, dataclasses.replace(row.details, bytes_per_second=moved, share_of_copy=moved / copy))


def _name(batch: int) -> str:
    return f"batch {batch:,}"


def _case(bench: Bench[Settings], whole: SplitView | RaggedView, batch: int) -> Measured[AugmentationDetails]:
    augmenter = build_augmenter(bench.config, bench.prepared, bench.runtime, train=True)
    permutation = torch.randperm(len(whole.labels), device=whole.labels.device)
    written = augmenter(whole._replace(indices=permutation[:1])).nbytes
    image_bytes = _read_bytes(bench.config, whole) + written
    calls = min(max(_RING_BYTES // (batch * written), 2), _MOST_CALLS)
    parts = [permutation.roll(-k * batch)[:batch].contiguous() for k in range(calls)]

    def augment(indices: Tensor) -> Tensor:
        return augmenter(whole._replace(indices=indices))

    call, images = _repeated(augment, parts, bench.device)
    # The kernel reads the bytes of each image and writes its pixels in the output's type; indices are nothing to it.
    spec = dataclasses.asdict(bench.config.crop if bench.config.crop.sizes else bench.config.augment)
    threads = torch.get_num_threads() if bench.data_device.type == "cpu" else None
    details = AugmentationDetails(batch=batch, bytes_per_image=image_bytes, spec=spec, threads=threads)
    return Measured(name=_name(batch), run=bench.rate(call, items=images), details=details)


def _read_bytes(config: Config, whole: SplitView | RaggedView) -> int:
    """Of an image that is augmented; of a random crop, in the mean over the split in epoch 0."""
    if isinstance(whole, SplitView):
        return whole.images[0].numel()
    spec = config.crop.spec(config.crop.sizes[-1])
    heights, widths = whole.heights.cpu().long(), whole.widths.cpu().long()
    tables = resampling(spec, int(torch.maximum(heights, widths).max()))
    boxes = crop_boxes(heights, widths, torch.arange(len(heights)), tables, spec=spec, seed=config.run.seed, epoch=0)
    return round(CHANNELS * float((boxes.height * boxes.width).double().mean()))


def _repeated(
    augment: Callable[[Tensor], Tensor], parts: list[Tensor], device: torch.device
) -> tuple[Callable[[], object], int]:
    """(a call, how many images it augments). On CUDA one graph of a call on each part, so that the kernel is measured
    and not Python; elsewhere a call on one part after the other."""
    if device.type == "cuda":
        augment(parts[0])
        return captured(lambda: [augment(part) for part in parts]), sum(map(len, parts))
    kept: deque[Tensor] = deque(maxlen=len(parts) - 1)
    place = 0

    def call() -> None:
        nonlocal place
        kept.append(augment(parts[place]))
        place = (place + 1) % len(parts)

    return call, len(parts[0])
