"""DALI: its pipeline takes batches from the TFRecord shards to the device, two ahead of the step."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.spec import check_reflection
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch
from fast_train.pipeline.loaders.native import NativeAugment

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline


class DaliLoader(Loader):
    """Raw images go through DALI a whole batch at a time; JPEGs are decoded on the GPU where there is one.

    ``workers``: DALI's threads, by default `spare_cores`. ``native``: augment inside DALI's graph; a batch's images
    are then [N, C, H, W] in channels_last memory, normalised, of `NativeAugment.output_dtype`.
    """

    format: ClassVar[str] = "dali"
    optional: ClassVar[tuple[str, str]] = (
        "dali_graph",
        "DALI can't be imported ({}); install it: pip install nvidia-dali-cuda120 (nvidia-dali-cuda130 for CUDA 13)",
    )

    def __init__(
        self, prepared: PreparedSet, split: str, options: LoaderOptions, *, native: NativeAugment | None = None
    ) -> None:
        super().__init__(prepared, split, options)
        self._shards = prepared.tfrecords(split)
        self._encoded = prepared.manifest.encoding("dali")["mode"] != "raw"
        self._native = native
        if native is not None:
            check_reflection(native.spec, *prepared.manifest.image_shape[:2])
        self._by_image = self._encoded or native is not None
        self._coming: Iterator[Tensor] = iter(())
        # Here and not above: DALI is optional.
        from fast_train.pipeline.loaders.dali_graph import build_graph

        # The graph holds its source, so a source that held the loader would keep both, and DALI's threads, alive.
        next_inputs = weakref.WeakMethod(self._next_inputs)

        def source() -> list[Any]:
            method = next_inputs()
            if method is None:
                raise StopIteration
            return method()

        self._graph: Pipeline | None = build_graph(
            source,
            prepared.manifest.image_shape,
            batch_size=self.batch_size,
            encoded=self._encoded,
            native=native,
            threads=self.workers or self.spare_cores(),
            device=self.device,
        )

    def example(self) -> Batch:
        images, labels, indices = super().example()
        if self._native is not None:
            images = images.permute(0, 3, 1, 2).to(self._native.output_dtype)
        return Batch(images, labels, indices)

    def _next_inputs(self) -> list[Any]:
        """What the graph's inputs are for the next batch; StopIteration where there is none."""
        indices = next(self._coming)
        numbers = indices.numpy()
        if self._encoded:
            images: Any = [self._shards.blob(number) for number in numbers]
        else:
            images = self._shards.take(numbers)
        inputs = [images, self._shards.labels[numbers], numbers]
        if self._native is not None:
            height, width, _ = self.prepared.manifest.image_shape
            inputs += self._native.draw(indices, self.epoch, height, width)
        return inputs if self._by_image else [[array] for array in inputs]

    def _batches(self, start: int) -> Generator[Batch]:
        if self._graph is None:
            raise self._closed()
        self._coming = self.index_batches(start)
        # The outputs' order on the device follows the stream of whoever works with them.
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        graph = self._graph
        try:
            graph.schedule_run()
            while True:
                try:
                    outputs = graph.share_outputs(cuda_stream=stream)
                except StopIteration:
                    return
                except RuntimeError as error:
                    # DALI takes no more calls of a graph that failed.
                    self._graph = None
                    if "Failed to decode" not in str(error):
                        raise
                    raise PreparedSetError(
                        f"{show(self.prepared.root)} holds a JPEG file, of split '{self.split}', that DALI can't "
                        f"decode; {ANEW}"
                    ) from error
                batch = Batch(*map(self._to_torch, outputs))
                graph.release_outputs()
                graph.schedule_run()
                if self._native is not None:
                    batch = batch._replace(images=batch.images.permute(0, 3, 1, 2))
                yield batch
        finally:
            self._drain()

    def _to_torch(self, output: Any) -> Tensor:
        return from_dlpack(output.as_tensor() if self._by_image else output[0])

    def _drain(self) -> None:
        """Take what the graph has prepared beyond the last batch, so that an epoch can begin anew."""
        self._coming = iter(())
        if self._graph is None:
            return
        try:
            while True:
                self._graph.share_outputs()
                self._graph.release_outputs()
                self._graph.schedule_run()
        except StopIteration:
            self._graph.reset()

    def close(self) -> None:
        super().close()
        self._graph = None
