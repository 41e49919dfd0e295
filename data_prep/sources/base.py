"""What every source is: images and labels, read once, in an order that is always the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fast_train.common.console import Display
from fast_train.data_prep.errors import PreparedSetError
from fast_train.data_prep.formats.base import Encoded, FormatOptions
from fast_train.data_prep.manifest import Manifest, RaggedShapes
from fast_train.data_prep.stats import ChannelHistogram

#: Those that a set may have, in order.
SPLITS = ("train", "validation", "test")


class Chunk(NamedTuple):
    """images: uint8 [n, H, W, C]. labels: int64 [n]. names: of the n files that the images came from, where each came
    from one; a source gives them for all of its images or for none."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str] = ()


class EncodedChunk(NamedTuple):
    """n images that keep their own shapes, with labels and names as in `Chunk`. digests: `stats.pixel_digest` of each;
    histogram: of the pixels of all, as they are stored."""

    images: Sequence[Encoded]
    labels: NDArray[np.int64]
    names: Sequence[str]
    digests: Sequence[bytes]
    histogram: ChannelHistogram


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says about the source; None: nothing.

    ``source``: an archive, a folder or an address. ``size``: side of the stored square, in pixels. ``test_fraction``,
    ``split_seed``: how to draw a test split where there is none; ``val_fraction``: that part of the training images
    becomes a validation split. ``skip_bad``: leave out files that are not images, or that are listed and not there.
    ``workers``: processes that decode.
    ``background``: a colour's name, or ``R,G,B``, behind transparent images and beside padded ones. ``fit``: how images
    are brought to the square, of ``images.FITS``. ``shorter_side``, in pixels, and ``store``, of ``keep.STORES``: how
    images that keep their own shapes are stored. ``csv_root``: where the paths in a CSV file begin;
    ``csv_columns``: what its columns are called, as ``path=NAME,label=NAME,split=NAME``.
    """

    source: str | None = None
    size: int | None = None
    shorter_side: int | None = None
    store: str | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    split_seed: int | None = None
    skip_bad: bool = False
    workers: int | None = None
    background: str | None = None
    fit: str | None = None
    csv_root: str | None = None
    csv_columns: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the source will yield: class names, the images' shape (H, W, C) or what there is to know where each has its
    own, and the most images of each split. stored_bytes: in the latter case, of each split, about how many bytes the
    image files will have."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int] | RaggedShapes
    counts: dict[str, int]
    stored_bytes: dict[str, int] = field(default_factory=dict)


class PlanChangedError(Exception):
    """Files turned out not to be images, and without them the plan is another one: the set is made anew from `plan`
    on."""


class Source(ABC):
    """One source, from the options (``argument`` is what follows the colon in ``folder:DIR``).

    The constructor only looks at the options; `plan` opens the source; `read` goes through one split once. Each raises
    PreparedSetError for what it can't use. encoding: says how images that keep their own shapes are encoded.
    """

    kind: ClassVar[str]
    #: What follows the kind and a colon, in words for the user; empty: nothing does.
    takes: ClassVar[str] = ""
    #: Which of the options that a user may leave out mean something here.
    accepts: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, argument: str, options: SourceOptions, display: Display, encoding: FormatOptions) -> None:
        self.argument, self.options, self.display, self.encoding = argument, options, display, encoding
        for name, value in vars(options).items():
            if value is not None and value is not False and name not in self.accepts:
                flag = "--" + name.replace("_", "-")
                raise PreparedSetError(f"{flag} means nothing to --dataset {self.kind}; leave it out")
        for flag, fraction in (("--test-fraction", options.test_fraction), ("--val-fraction", options.val_fraction)):
            if fraction is not None and not 0 < fraction < 1:
                raise PreparedSetError(f"{flag} {fraction:g} is not between 0 and 1")

    @property
    def default_name(self) -> str:
        """The name of the folder that the set goes into, where the user gives none."""
        return self.kind

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the images follow from, in JSON's types: two sets with equal identities are equal."""

    def outdated(self, manifest: Manifest) -> str | None:
        """In what, by words, a set of equal `identity` that an earlier version made differs from the one that this
        source makes."""
        del manifest
        return None

    @abstractmethod
    def plan(self, scratch: Path) -> Plan:
        """Open the source; ``scratch`` is an empty folder that goes away once the set is made."""

    @abstractmethod
    def read(self, split: str) -> Iterator[Chunk] | Iterator[EncodedChunk]:
        """The images of a split with their labels, in order."""

    def outcome(self) -> dict[str, Any]:
        """What the reading found, for the manifest. Raises PreparedSetError where no set can be made of it, and
        PlanChangedError at most once for each file."""
        return {}

    def close(self) -> None:  # noqa: B027  # most sources hold nothing
        """Release processes and files."""
