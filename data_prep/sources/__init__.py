"""Every source by the name that ``--dataset`` takes."""

from __future__ import annotations

from fast_train.common.console import Display
from fast_train.common.text import show
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import FormatOptions
from fast_train.data_prep.sources.base import Chunk, EncodedChunk, Plan, PlanChangedError, Source, SourceOptions
from fast_train.data_prep.sources.cifar import Cifar10, Cifar100
from fast_train.data_prep.sources.folder import ImageFolder
from fast_train.data_prep.sources.shards import ParquetImages
from fast_train.data_prep.sources.synthetic import Synthetic
from fast_train.data_prep.sources.table import CsvTable

__all__ = ["SOURCES", "Chunk", "EncodedChunk", "Plan", "PlanChangedError", "Source", "SourceOptions", "build_source"]

SOURCES: dict[str, type[Source]] = {
    source.kind: source for source in (Cifar10, Cifar100, ImageFolder, CsvTable, ParquetImages, Synthetic)
}


def build_source(
    dataset: str, options: SourceOptions, display: Display, encoding: FormatOptions | None = None
) -> Source:
    """The source of ``--dataset``: one of `SOURCES`, with what it takes. PreparedSetError for another name."""
    kind, colon, argument = dataset.partition(":")
    if kind not in SOURCES or bool(colon) != bool(SOURCES[kind].takes) or (colon and not argument):
        names = ", ".join(f"{name}:{source.takes}" if source.takes else name for name, source in SOURCES.items())
        raise PreparedSetError(f"--dataset {show(dataset)} is not known; choose from {names}")
    return SOURCES[kind](argument, options, display, encoding or FormatOptions())
