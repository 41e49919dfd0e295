"""webdataset: tar shards read from end to end, shuffled in buffers.

By the library's example of training a ResNet-50 (webdataset/webdataset, examples/train-resnet50-wds.ipynb): shards
drawn with replacement, a shuffle buffer of 1,000 images in each worker, PIL images, torchvision's transforms, batches
mixed once more between workers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.feeds import PILLOW, FeedOptions, Peer
from fast_train.benchmarks.peers.dataloader import pil_transforms, started
from fast_train.benchmarks.peers.written import stored_files, written

_SHARD, _BUFFER, _MIXED = 1000, 1000, 10


class WebdatasetPeer(Peer):
    """Float32 batches. Its shards hold the set's files, 1,000 images each."""

    name = "webdataset"
    source = "webdataset/webdataset, examples/train-resnet50-wds.ipynb"
    augmentation = "RandomResizedCrop, flip on PIL images"
    decoder = PILLOW

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        if importlib.util.find_spec("webdataset") is None:
            raise ValueError("webdataset is not installed; pip install 'fast-train[peers]'")
        import webdataset

        self.dtype = torch.float32
        folder = written(options.prepared, options.scratch, "webdataset", self._write)
        shards = sorted(map(str, folder.iterdir()))
        images = webdataset.WebDataset(shards, resampled=True, shardshuffle=False)
        images = images.shuffle(_BUFFER).decode("pil").to_tuple("jpg;png", "cls").map_tuple(pil_transforms(self), int)
        loader = webdataset.WebLoader(images.batched(self.batch_size), batch_size=None, num_workers=self.workers)
        self._loader: Any = loader.unbatched().shuffle(_MIXED).batched(self.batch_size)

    def _write(self, folder: Path) -> None:
        import webdataset

        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=_SHARD, verbose=0) as shards:
            for number, (file, suffix, label) in enumerate(stored_files(self.prepared, "train")):
                shards.write({"__key__": f"{number:08}", suffix[1:]: file, "cls": label})

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in islice(started(self._loader, self.workers, lazy=True), count):
            yield images.to(self.device), labels.to(self.device)

    def close(self) -> None:
        self._loader = None
