"""mosaicml-streaming: MDS shards, in a random order that resumes, here from the local disk alone.

By the library's quick start and its class for ImageNet (mosaicml/streaming, docs, getting started; streaming/vision):
``StreamingDataset`` with shuffling under a DataLoader, PIL images, torchvision's transforms.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fast_train.benchmarks.instrument.feeds import PILLOW, FeedOptions, Peer
from fast_train.benchmarks.peers.dataloader import pil_transforms, started
from fast_train.benchmarks.peers.written import stored_files, written


class StreamingPeer(Peer):
    """Float32 batches. Its shards hold the set's files as bytes: the library's type for JPEG would encode PNG anew."""

    name = "mosaicml-streaming"
    source = "mosaicml/streaming, docs/source/getting_started/quick_start.md, streaming/vision"
    augmentation = "RandomResizedCrop, flip on PIL images"
    decoder = PILLOW

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        if importlib.util.find_spec("streaming") is None:
            raise ValueError("mosaicml-streaming is not installed; pip install 'fast-train[peers]'")
        from streaming import StreamingDataset

        self.dtype = torch.float32
        transform = pil_transforms(self)

        class Images(StreamingDataset):
            """As the quick start has it."""

            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                with Image.open(io.BytesIO(sample["image"])) as image:
                    return transform(image.convert("RGB")), sample["label"]

        folder = written(options.prepared, options.scratch, "mds", self._write)
        images = Images(local=str(folder), shuffle=True, batch_size=self.batch_size)
        self._loader: Any = DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )

    def _write(self, folder: Path) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as shards:
            for file, _, label in stored_files(self.prepared, "train"):
                shards.write({"image": file, "label": label})

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in islice(started(self._loader, self.workers), count):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def close(self) -> None:
        self._loader = None
