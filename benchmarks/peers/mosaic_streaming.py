"""mosaicml-streaming: MDS shards, in a random order that resumes, here from the local disk alone.

By the library's quick start and its class for ImageNet (mosaicml/streaming, docs, getting started; streaming/vision):
``StreamingDataset`` with shuffling under a DataLoader, PIL images, torchvision's transforms.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fast_train.benchmarks.peers.dataloader import ShardsPeer
from fast_train.benchmarks.peers.written import stored_files


class StreamingPeer(ShardsPeer):
    """Its shards hold the files as bytes: the library's type for JPEG would encode PNG anew."""

    name = "mosaicml-streaming"
    source = "mosaicml/streaming, docs/source/getting_started/quick_start.md, streaming/vision"
    library = "streaming", "mosaicml-streaming", "peers"

    def open(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> DataLoader[Any]:
        from streaming import StreamingDataset

        class Images(StreamingDataset):
            """As the quick start has it."""

            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                with Image.open(io.BytesIO(sample["image"])) as image:
                    return transform(image.convert("RGB")), sample["label"]

        return DataLoader(
            Images(local=str(folder), shuffle=True, batch_size=self.batch_size),
            batch_size=self.batch_size,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            drop_last=True,
        )

    def write(self, folder: Path) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as shards:
            for file, _, label in stored_files(self.prepared, "train"):
                shards.write({"image": file, "label": label})
