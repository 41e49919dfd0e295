"""webdataset: tar shards read from end to end, shuffled in buffers.

By the library's example of training a ResNet-50 (webdataset/webdataset, examples/train-resnet50-wds.ipynb): shards
drawn with replacement, a shuffle buffer of 1,000 images in each worker, PIL images, torchvision's transforms, batches
mixed once more between workers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from fast_train.benchmarks.peers.dataloader import ShardsPeer
from fast_train.benchmarks.peers.written import stored_files

_SHARD, _BUFFER, _MIXED = 1000, 1000, 10


class WebdatasetPeer(ShardsPeer):
    """1,000 images a shard."""

    name = "webdataset"
    source = "webdataset/webdataset, examples/train-resnet50-wds.ipynb"
    library = "webdataset", "webdataset", "peers"
    lazy = True

    def open(self, folder: Path, transform: Callable[[Image], Tensor]) -> Any:
        import webdataset

        shards = sorted(map(str, folder.iterdir()))
        images = webdataset.WebDataset(shards, resampled=True, shardshuffle=False)
        images = images.shuffle(_BUFFER).decode("pil").to_tuple("jpg;png", "cls").map_tuple(transform, int)
        loader = webdataset.WebLoader(images.batched(self.batch_size), batch_size=None, num_workers=self.workers)
        return loader.unbatched().shuffle(_MIXED).batched(self.batch_size)

    def write(self, folder: Path) -> None:
        import webdataset

        with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=_SHARD, verbose=0) as shards:
            for number, (file, suffix, label) in enumerate(stored_files(self.prepared, "train")):
                shards.write({"__key__": f"{number:08}", suffix[1:]: file, "cls": label})
