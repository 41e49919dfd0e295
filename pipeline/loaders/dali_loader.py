"""DALI: its pipeline takes batches from the TFRecord shards to the device, two ahead of the step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fast_train.common.text import show
from fast_train.data_prep.errors import ANEW, PreparedSetError
from fast_train.data_prep.manifest import PreparedSet
from fast_train.kernels.spec import check_reflection
from fast_train.pipeline.loaders.base import Loader, LoaderOptions
from fast_train.pipeline.loaders.batch import Batch, OwnBatch, RaggedBatch
from fast_train.pipeline.loaders.image_files import Shapes
from fast_train.pipeline.loaders.native import NativeAugment, NativeCrop

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline


class DaliLoader(Loader):
    """Raw images go through DALI a whole batch at a time; JPEGs are decoded on the GPU where there is one.

    ``workers``: DALI's threads, by default `spare_cores`. ``native``: augment inside DALI's graph, by a `NativeCrop`
    images that keep their own shapes; a batch's images are then [N, C, H, W] in channels_last memory, normalised, of
    its ``output_dtype``.
    """

    format: ClassVar[str] = "dali"
    optional: ClassVar[tuple[str, str]] = (
        "dali_graph",
        "DALI can't be imported ({}); install it, on Linux: pip install nvidia-dali-cuda120 (nvidia-dali-cuda130 for "
        "CUDA 13)",
    )

    def __init__(
        self,
        prepared: PreparedSet,
        split: str,
        options: LoaderOptions,
        *,
        native: NativeAugment | NativeCrop | None = None,
    ) -> None:
        super().__init__(prepared, split, options)
        self._shards = prepared.tfrecords(split)
        self._encoded = bool(self.largest) or prepared.manifest.encoding("dali")["mode"] != "raw"
        self._native = native
        if native is not None and isinstance(native, NativeCrop) != bool(self.largest):
            raise ValueError(
                "DALI's graph resizes crops of images that keep their own shapes, and no others; leave out "
                "--dali-augment native, or the size of the crops"
            )
        if isinstance(native, NativeAugment):
            check_reflection(native.spec, *prepared.manifest.image_shape[:2])
        self._by_image = self._encoded or native is not None
        self._coming: Iterator[Tensor] = iter(())
        # The graph holds its source, so a source that held the loader would keep both, and DALI's threads, alive.
        next_inputs = weakref.WeakMethod(self._next_inputs)

        def source() -> list[Any]:
            method = next_inputs()
            if method is None:
                raise StopIteration
            return method()

        self._graph: Pipeline | None = self._build(source)

    def _build(self, source: Callable[[], list[Any]]) -> Pipeline:
        # Here and not above: DALI is optional.
        from fast_train.pipeline.loaders.dali_graph import build_graph, build_ragged_graph

        threads = self.workers or self.spare_cores()
        if not self.largest:
            assert not isinstance(self._native, NativeCrop)
            return build_graph(
                source,
                self.prepared.manifest.image_shape,
                batch_size=self.batch_size,
                encoded=self._encoded,
                native=self._native,
                threads=threads,
                device=self.device,
            )
        assert not isinstance(self._native, NativeAugment)
        self._shapes = Shapes(self._shards.heights, self._shards.widths, self._shards.labels)
        return build_ragged_graph(
            source,
            self.largest,
            batch_size=self.batch_size,
            native=self._native,
            threads=threads,
            device=self.device,
        )

    def blank(self) -> OwnBatch:
        if self._native is None:
            return super().blank()
        if isinstance(self._native, NativeCrop):
            height = width = self._native.spec.size
        else:
            height, width, _ = self.prepared.manifest.image_shape
        shape = (self.batch_size, height, width, self.prepared.manifest.channels)
        images = torch.zeros(shape, dtype=self._native.output_dtype, device=self.device)
        indices = torch.arange(self.batch_size, device=self.device)
        return Batch(images.permute(0, 3, 1, 2), torch.zeros_like(indices), indices)

    def _next_inputs(self) -> list[Any]:
        """What the graph's inputs are for the next batch; StopIteration where there is none."""
        indices = next(self._coming)
        numbers = indices.numpy()
        if self._encoded:
            images: Any = [self._shards.blob(number) for number in numbers]
        else:
            images = self._shards.take(numbers)
        inputs = [images, self._shards.labels[numbers], numbers]
        if self.largest:
            sides = self._shapes.heights[indices], self._shapes.widths[indices]
            if isinstance(self._native, NativeCrop):
                return inputs + self._native.draw(indices, self.epoch, *sides)
            return inputs + [side.numpy() for side in sides]
        if isinstance(self._native, NativeAugment):
            height, width, _ = self.prepared.manifest.image_shape
            inputs += self._native.draw(indices, self.epoch, height, width)
        return inputs if self._by_image else [[array] for array in inputs]

    def _batches(self, start: int) -> Generator[OwnBatch]:
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
                batch = self._batch(*map(self._to_torch, outputs))
                graph.release_outputs()
                graph.schedule_run()
                yield batch
        finally:
            self._drain()

    def _batch(self, images: Tensor, labels: Tensor, indices: Tensor, *sides: Tensor) -> OwnBatch:
        if sides:
            heights, widths = sides
            offsets = torch.arange(len(images), device=self.device) * self.largest
            return RaggedBatch(images.view(-1), offsets, heights, widths, labels, indices)
        return Batch(images if self._native is None else images.permute(0, 3, 1, 2), labels, indices)

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
