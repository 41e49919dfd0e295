"""DALI's stock reader and its own augmentation, one operator per step, one sample at a time.

By NVIDIA's documentation of ``fn.readers.tfrecord`` and of ``fn.crop_mirror_normalize`` and its examples for PyTorch
(docs.nvidia.com/deeplearning/dali), over our TFRecord shards: read and shuffle, crop out of a padded image, flip,
normalise; on the GPU where there is one, on the CPU otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fast_train.benchmarks.instrument.feeds import FeedOptions, Peer

_PAD = 4


class DaliPeer(Peer):
    """A pipeline of DALI's operators that ends in images and labels, through DALI's iterator for PyTorch."""

    library = "nvidia.dali", "DALI", "dali"

    def __init__(self, options: FeedOptions) -> None:
        super().__init__(options)
        # DALI knows no bfloat16.
        self.dtype = self.dtype if self.dtype == torch.float32 else torch.float16
        self.check(options)
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

        self._loader = DALIGenericIterator(
            [self._build()],
            ["images", "labels"],
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.DROP,
            auto_reset=True,
        )

    def _build(self) -> Any:
        from nvidia.dali import pipeline_def

        gpu = self.device.type == "cuda"

        @pipeline_def(
            batch_size=self.batch_size,
            num_threads=max(self.workers, 1),
            device_id=(self.device.index or 0) if gpu else None,
            seed=0,
        )
        def graph() -> Any:
            return self.graph()

        return graph()

    def check(self, options: FeedOptions) -> None:
        """ValueError or PreparedSetError where the set has not what the pipeline reads."""

    def normalised(self, images: Any, **crop: Any) -> Any:
        """Images [C, H, W] of `dtype`, half of them mirrored, as a node of DALI's graph. crop: what is cut out."""
        from nvidia.dali import fn, types

        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in self.prepared.manifest.mean],
            std=[255 * value for value in self.prepared.manifest.std],
            dtype=types.FLOAT if self.dtype == torch.float32 else types.FLOAT16,
            output_layout="CHW",
            **crop,
        )

    @abstractmethod
    def graph(self) -> tuple[Any, Any]:
        """Images and labels int64 [1], as nodes of DALI's graph; its reader is called ``reader``."""

    def epoch(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            try:
                outputs = next(self._loader)
            except StopIteration:
                # The end of DALI's epoch; `auto_reset` has begun the next one.
                outputs = next(self._loader)
            yield outputs[0]["images"], outputs[0]["labels"].squeeze(1)


class DaliStock(DaliPeer):
    """Shuffles within DALI's buffer of 4,096 images, not the whole split."""

    name = "DALI's reader"
    source = "docs.nvidia.com/deeplearning/dali, fn.readers.tfrecord and fn.crop_mirror_normalize"
    augmentation = "crop 4, flip, normalisation by DALI"

    def check(self, options: FeedOptions) -> None:
        self.prepared.tfrecords("train")
        if self.prepared.manifest.encoding("dali")["mode"] != "raw":
            raise ValueError("its TFRecord files hold JPEG; prepare the set with --dali-mode raw")

    def graph(self) -> tuple[Any, Any]:
        images, labels = self._read()
        if self.device.type == "cuda":
            images, labels = images.gpu(), labels.gpu()
        return self._augmented(images) if self.augment else images, labels

    def _read(self) -> tuple[Any, Any]:
        """Images uint8 [H, W, C] and labels int64 [1], as nodes of DALI's graph."""
        from nvidia.dali import fn, tfrecord

        files = [str(path) for path in self.prepared.files("train", "dali")]
        shards, indices = files[: len(files) // 2], files[len(files) // 2 :]
        read: Any = fn.readers.tfrecord(
            path=shards,
            index_path=indices,
            features={
                "image": tfrecord.FixedLenFeature([], tfrecord.string, ""),
                "label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
            },
            random_shuffle=True,
            initial_fill=4096,
            name="reader",
        )
        images = fn.reinterpret(read["image"], shape=list(self.prepared.manifest.image_shape), layout="HWC")
        return images, read["label"]

    def _augmented(self, images: Any) -> Any:
        """Images [C, H, W] of `dtype`, as a node of DALI's graph."""
        from nvidia.dali import fn, types

        height, width, _ = self.prepared.manifest.image_shape
        start = fn.random.uniform(values=list(range(-_PAD, _PAD + 1)), shape=(2,))
        # By name: as positional arguments they would be copied back from the GPU for each batch.
        images = fn.slice(
            images,
            start=fn.cast(start, dtype=types.INT32),
            shape=(height, width),
            axes=(0, 1),
            out_of_bounds_policy="pad",
        )
        return self.normalised(images)
