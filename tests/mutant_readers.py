"""Whatever reads files that may come from someone else: what it reads, where its numbers lie, and how it is read."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import shutil
import sys
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from inputs import CLASSES, COUNTS, SHAPE, known_file, make_ragged_set, make_set, pixels_of, python2_pickle
from mutators import Mutator, Places

from fast_train.data_prep.manifest import MANIFEST_NAME, PreparedSet


class Reader(ABC):
    """A kind of input: whole in ``folder`` once built; `targets` are damaged one at a time, and then `read`."""

    #: Whether a checksum keeps what is read.
    checked: ClassVar[bool] = True
    #: Whether that checksum can be made to fit.
    refits: ClassVar[bool] = False
    #: An optional library that it reads with.
    library: ClassVar[str | None] = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.targets: list[Path] = []

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        return mutator.damage(raw, [group for group in self.numbers(path, raw) if group])

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        """Where a reader's numbers lie, by their kinds."""
        del path, raw
        return []

    @contextlib.contextmanager
    def refitted(self, path: Path) -> Iterator[None]:
        """In the block, the checksum fits the damaged file, of a reader that `refits`."""
        raise NotImplementedError(path)
        yield

    @abstractmethod
    def read(self, path: Path) -> str:
        """Read everything that ``path`` is a part of, to the last pixel; a digest of it."""


class SetReader(Reader):
    """A prepared set with files of one format. modes: how images are stored in them, a set each."""

    format: ClassVar[str] = "packed"
    modes: ClassVar[tuple[str, ...]] = ("raw",)
    refits = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for mode in self.modes:
            self.make(folder / mode, mode)
            self.targets += sorted((folder / mode).glob("train*"))

    def make(self, folder: Path, mode: str) -> None:
        make_set(folder, self.format, mode)

    @contextlib.contextmanager
    def refitted(self, path: Path) -> Iterator[None]:
        manifest = path.parent / MANIFEST_NAME
        text, raw = manifest.read_text(), path.read_bytes()
        data = json.loads(text)
        for entry in data["files"]:
            if entry["path"] == path.name:
                entry.update(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        manifest.write_text(json.dumps(data))
        try:
            yield
        finally:
            manifest.write_text(text)

    def read(self, path: Path) -> str:
        return _digest(self.batches(PreparedSet.open(path.parent)))

    @abstractmethod
    def batches(self, prepared: PreparedSet) -> Iterable[Sequence[Any]]:
        """Arrays of all that the training split holds."""


class Packed(SetReader):
    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        return [[(0, 8)], [(i, 1) for i in range(8, min(4096, len(raw))) if chr(raw[i]).isdigit()]]

    def batches(self, prepared: PreparedSet) -> Iterable[Sequence[Any]]:
        packed = prepared.packed("train")
        yield packed.images, _within(packed.labels)


class Beton(SetReader):
    """Read by FFCV. Its code, whose compilation takes seconds, is that of the first file."""

    format = library = "ffcv"
    modes = ("raw", "proportion")
    _loader: Any = None

    def batches(self, prepared: PreparedSet) -> Iterable[Sequence[Any]]:
        from fast_train.pipeline.loaders import build_loader

        beton = prepared.beton("train")
        if self._loader is None:
            self._loader = build_loader("ffcv", prepared, "train", batch_size=5, train=False, workers=1)
        compiled = self._loader._reader
        compiled.reader = sys.modules["ffcv.reader"].Reader(str(beton.path))
        compiled.memory_manager = type(compiled.memory_manager)(compiled.reader)
        if self._loader._shapes is not None:
            self._loader._shapes = type(self._loader._shapes)(beton.heights, beton.widths, beton.labels)
        yield from _loaded(self._loader)

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        from fast_train.data_prep.formats import beton

        count = COUNTS["train"]
        fields = beton.HEADER.fields or {}
        header = [(fields[name][1], fields[name][0].itemsize) for name in fields]
        rows = beton.METADATA_AT + np.arange(count) * beton.SAMPLE.itemsize
        parts = ((0, 1), (2, 2), (4, 2), (6, 8), (8, 8), (16, 8), (24, 8))
        samples = [(int(row) + at, width) for row in rows for at, width in parts]
        table = len(raw) - beton.ALLOCATION.itemsize * count + np.arange(3 * count) * 8
        return [header, samples, [(int(at), 8) for at in table], *_jpeg_numbers(raw)]


class TFRecord(SetReader):
    """Read by DALI."""

    format, library = "dali", "nvidia.dali"
    modes = ("raw", "jpg")

    def batches(self, prepared: PreparedSet) -> Iterable[Sequence[Any]]:
        from fast_train.pipeline.loaders import build_loader

        with build_loader("dali", prepared, "train", batch_size=5, train=False, workers=1) as loader:
            yield from _loaded(loader)

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        if path.suffix == ".idx":
            return [[(i, 1) for i, byte in enumerate(raw) if chr(byte).isdigit()]]
        begins = [i - 30 for i in range(len(raw)) if raw.startswith(b"label", i)]
        return [[(max(begin + at, 0), 5) for begin in begins for at in range(0, 150, 5)], *_jpeg_numbers(raw)]

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        if path.suffix == ".idx" and mutator.chance(0.5):
            words = raw.split()
            words[mutator.below(len(words))] = str(mutator.choose((0, -1, 2**31, 2**63 - 1, 2**63, -(2**63)))).encode()
            return b"\n".join(b" ".join(words[i : i + 2]) for i in range(0, len(words), 2)) + b"\n"
        return super().damage(path, raw, mutator)


class RaggedPacked(Packed):
    modes = ("encoded",)

    def make(self, folder: Path, mode: str) -> None:
        make_ragged_set(folder, formats=(self.format,))

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        # Offsets, labels, heights and widths come last.
        columns = len(raw) - 24 * COUNTS["train"] - 8
        return [
            *super().numbers(path, raw),
            [(at, 4) for at in range(columns, len(raw), 4)],
            *_jpeg_numbers(raw),
            _png_numbers(raw),
        ]

    def batches(self, prepared: PreparedSet) -> Iterable[Sequence[Any]]:
        from fast_train.data_prep.formats.decode import decode_rgb

        encoded = prepared.encoded("train")
        for number, label in enumerate(_within(encoded.labels)):
            shape = int(encoded.heights[number]), int(encoded.widths[number])
            yield decode_rgb(encoded.file(number), *shape), label


class RaggedBeton(Beton):
    modes = ("encoded",)
    make = RaggedPacked.make


class RaggedTFRecord(TFRecord):
    modes = ("encoded",)
    make = RaggedPacked.make

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        return super().numbers(path, raw) if path.suffix == ".idx" else [*super().numbers(path, raw), _png_numbers(raw)]


class ManifestJson(Reader):
    """Kept by no checksum: whatever else it says, images and labels are those of the files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for format in ("packed", "ffcv", "dali"):
            make_set(folder / format, format, "raw")
            self.targets.append(folder / format / MANIFEST_NAME)
        make_ragged_set(folder / "ragged", formats=("packed", "ffcv", "dali"))
        self.targets.append(folder / "ragged" / MANIFEST_NAME)

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        return mutator.damage_json(raw)

    def read(self, path: Path) -> str:
        from fast_train.data_prep.prepare import summary

        prepared = PreparedSet.open(path.parent)
        # What commands print, and write into a run's record.
        assert summary(prepared).isprintable(), "not printable"
        json.dumps([prepared.manifest.source, prepared.manifest.to_json(), prepared.source_name])
        if path.parent.name == "ragged":
            for opener in (prepared.beton, prepared.tfrecords):
                list(map(opener, COUNTS))
            return _digest((encoded.data, encoded.labels) for encoded in map(prepared.encoded, COUNTS))
        if path.parent.name == "packed":
            return _digest((packed.images, packed.labels) for packed in map(prepared.packed, COUNTS))
        if path.parent.name == "dali":
            return _digest((shards.take(np.arange(len(shards.labels))),) for shards in map(prepared.tfrecords, COUNTS))
        return repr([prepared.beton(split).path.name for split in COUNTS])


class Photograph(Reader):
    """Image files: of most formats no checksum keeps the pixels."""

    checked = False
    _KINDS: ClassVar[dict[str, dict[str, str]]] = {
        **{kind: {} for kind in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm")},
        "lzw.tif": {"compression": "tiff_lzw"},
        "jpg.tif": {"compression": "jpeg"},
    }

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        super().__init__(folder)
        folder.mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        for kind, options in self._KINDS.items():
            turned = {"exif": exif} if kind in ("png", "jpg", "webp") else {}
            self.targets.append(folder / f"image.{kind}")
            Image.fromarray(pixels_of("test")[0]).save(self.targets[-1], **options, **turned)
        self.targets.append(folder / "16.png")
        Image.fromarray(np.arange(80, dtype=np.uint16).reshape(10, 8) * 800).save(self.targets[-1])

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        heads = [(place, width) for place in range(min(len(raw) - 4, 64)) for width in (1, 2, 4)]
        return [heads, *_jpeg_numbers(raw)]

    def read(self, path: Path) -> str:
        from fast_train.data_prep.images import read_header, read_rgb

        header = read_header(str(path))
        pixels = [read_rgb(str(path), shape).pixels for shape in (None, (12, 12))]
        assert pixels[0].shape[:2] == header[:2], "another size than the header's"
        assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) for image in pixels), "pixels of another kind"
        return _digest([pixels])


class Table(Reader):
    """A list of image files in CSV."""

    checked = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True)
        rows = ["path,label,split"]
        for split, count in COUNTS.items():
            for number in range(count):
                (folder / f"{split}{number}.png").touch()
                rows.append(f"{split}{number}.png,{CLASSES[number % len(CLASSES)]},{split}")
        self.targets = [folder / "images.csv"]
        self.targets[0].write_text("\n".join(rows))

    def read(self, path: Path) -> str:
        from fast_train.data_prep.sources.table import list_table

        listing = list_table(path, self.folder, {})
        assert all((self.folder / file.name).is_file() for file in listing.files), "a file that is not there"
        return _checked_listing(listing)


class Shards(Reader):
    """Images in a parquet file of Hugging Face's form."""

    checked = False
    library = "pyarrow"

    def __init__(self, folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        super().__init__(folder)
        folder.mkdir(parents=True)
        labels = [number % len(CLASSES) for number in range(COUNTS["train"])]
        images = [{"bytes": bytes([number]) * 40, "path": None} for number in range(len(labels))]
        features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
        table = pyarrow.table({"image": images, "label": labels})
        self.targets = [folder / "train-00000-of-00001.parquet"]
        parquet.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
            self.targets[0],
            row_group_size=7,
        )

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
        return [[(len(raw) - 8, 4)], [(at, 1) for at in range(footer, len(raw) - 8)]]

    def read(self, path: Path) -> str:
        from fast_train.common.console import Display
        from fast_train.data_prep.sources import SourceOptions, build_source

        source: Any = build_source(f"parquet:{path}", SourceOptions(), Display())
        listing = source.listing
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            source.root = Path(scratch)
            source._unpack(listing)
            contents = [(source.root / file.name).read_bytes() for file in listing.files]
        return _checked_listing(listing) + hashlib.sha256(b"".join(contents)).hexdigest()


def _checked_listing(listing: Any) -> str:
    assert {file.class_name for file in listing.files} <= set(listing.classes), "a class of its own"
    assert all(map(str.isprintable, listing.classes)), "a class that does not print"
    return repr((listing.files, listing.classes))


class Batches(Reader):
    """CIFAR's pickles in a folder, and the archive of them."""

    refits = True

    def __init__(self, folder: Path) -> None:
        from fast_train.data_prep.sources.cifar_files import CIFAR10

        super().__init__(folder)
        self._folder = folder / CIFAR10.folder
        self._folder.mkdir(parents=True)
        data = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
        for known in (known for batches in CIFAR10.batches.values() for known in batches):
            content = python2_pickle({b"labels": [0, 1, 2, 3], b"data": data})
            (self._folder / known.name).write_bytes(content)
        archive = folder / CIFAR10.archive.name
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(self._folder, CIFAR10.folder)
        self.targets = [*sorted(self._folder.iterdir()), archive, archive]
        batches = {
            split: tuple(known_file(self._folder / known.name) for known in batches)
            for split, batches in CIFAR10.batches.items()
        }
        self._files = dataclasses.replace(CIFAR10, archive=known_file(archive), batches=batches)

    @contextlib.contextmanager
    def refitted(self, path: Path) -> Iterator[None]:
        files, new = self._files, known_file(path)
        batches = {
            split: tuple(new if known.name == new.name else known for known in batches)
            for split, batches in files.batches.items()
        }
        archive = new if path.parent == self.folder else files.archive
        self._files = dataclasses.replace(files, archive=archive, batches=batches)
        try:
            yield
        finally:
            self._files = files

    def read(self, path: Path) -> str:
        from fast_train.data_prep.sources.batches import read_archive, read_folder

        read = read_archive if path.parent == self.folder else read_folder
        splits = read(path if path.parent == self.folder else path.parent, self._files)
        return _digest((chunk.images, chunk.labels) for chunks in splits.values() for chunk in chunks)


class Recipe(Reader):
    checked = False

    def __init__(self, folder: Path) -> None:
        from fast_train.pipeline.config.recipe import FOLDER

        super().__init__(folder)
        shutil.copytree(FOLDER, folder)
        self.targets = sorted(folder.glob("*.toml"))

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        return mutator.damage_toml(raw)

    def read(self, path: Path) -> str:
        from fast_train.pipeline.config.recipe import resolve

        return json.dumps(resolve(str(path), {}).to_dict())


class RunReader(Reader):
    """A file of a run's folder, as a training leaves it."""

    file: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shutil.copytree(_trained(folder.parent / "trained"), folder)
        self.targets = [folder / "run" / self.file]


class RunRecord(RunReader):
    checked = False
    file = "config.json"

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        return mutator.damage_json(raw)

    def read(self, path: Path) -> str:
        from fast_train.pipeline.run import record

        run = record.read(path.parent)
        return repr((run.config, run.finished, run.dtype, run.classes))


class Metrics(RunRecord):
    file = "metrics.jsonl"

    def damage(self, path: Path, raw: bytes, mutator: Mutator) -> bytes:
        lines = raw.split(b"\n")
        at = mutator.below(len(lines) - 1)
        lines[at] = mutator.damage_json(lines[at])
        return b"\n".join(lines) if mutator.chance(0.8) else mutator.damage(raw)


class Checkpoint(RunReader):
    file = "last.pt"

    def read(self, path: Path) -> str:
        from fast_train.pipeline.run import record

        prepared = PreparedSet.open(self.folder / "set")
        saved = record.load(path)
        record.check_resumable(saved, saved.config, prepared, {})
        record.as_trained(prepared, saved)
        return _digest([[value.numpy() for value in saved.weights.values()]]) + repr(saved.config)


class WeightFiles(Reader):
    """Weights to begin with, of others' files."""

    checked = False

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from fast_train.pipeline.config.settings import ModelConfig
        from fast_train.pipeline.models import build_model

        super().__init__(folder)
        folder.mkdir(parents=True)
        self._config = ModelConfig(arch="quick-resnet8", num_classes=len(CLASSES))
        self._network = build_model(self._config)
        self.targets = [folder / "weights.safetensors", folder / "weights.pth"]
        save_file(self._network.state_dict(), self.targets[0])
        torch.save(self._network.state_dict(), self.targets[1])

    def numbers(self, path: Path, raw: bytes) -> list[Places]:
        return Packed.numbers(self, path, raw) if path.suffix == ".safetensors" else []

    def read(self, path: Path) -> str:
        from fast_train.pipeline.run.weights import read_weights

        taken = read_weights(path).fitted(self._config, CLASSES)
        self._network.load_state_dict(taken, strict=False)
        return _digest([[tensor.numpy() for tensor in taken.values()]])


READERS: dict[str, type[Reader]] = {
    "manifest": ManifestJson,
    "packed": Packed,
    "beton": Beton,
    "tfrecord": TFRecord,
    "ragged packed": RaggedPacked,
    "ragged beton": RaggedBeton,
    "ragged tfrecord": RaggedTFRecord,
    "images": Photograph,
    "csv": Table,
    "parquet": Shards,
    "cifar": Batches,
    "recipe": Recipe,
    "record": RunRecord,
    "metrics": Metrics,
    "checkpoint": Checkpoint,
    "weights": WeightFiles,
}


def lacks(name: str) -> str | None:
    """The library that a reader needs and that is not installed."""
    library = READERS[name].library
    # Of a name within a package that is not there.
    with contextlib.suppress(ModuleNotFoundError):
        return None if library is None or importlib.util.find_spec(library) else library
    return library


@cache
def _trained(folder: Path) -> Path:
    """A folder with a small set and a run on it."""
    import fast_train

    make_set(folder / "set", "packed", "raw")
    fast_train.train(folder / "set", recipe="cpu-quick", out=folder / "run", steps=2, batch_size=4)
    return folder


def _loaded(loader: Any) -> Iterator[Sequence[Any]]:
    for batch in loader:
        labels, indices = _within(batch.labels.numpy()), batch.indices.numpy()
        if hasattr(batch, "heights"):
            sizes = batch.heights.numpy().astype(int) * batch.widths.numpy() * 3
            data = batch.data.numpy().reshape(-1)
            begins = batch.offsets.tolist()
            yield *(data[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)), labels, indices
        else:
            assert tuple(batch.images.shape[1:]) == SHAPE, f"images {batch.images.shape}"
            yield batch.images.numpy(), labels, indices


def _within(labels: np.ndarray) -> np.ndarray:
    assert set(labels.tolist()) <= set(range(len(CLASSES))), "labels out of range"
    return labels


def _jpeg_numbers(raw: bytes) -> list[Places]:
    """The numbers of JPEG frames and segments, and the bytes of the tables and the encoded pixels."""
    frames: Places = []
    insides: Places = []
    at = raw.find(b"\xff\xd8\xff")
    while at >= 0:
        end = raw.find(b"\xff\xd9", at)
        end = len(raw) if end < 0 else end
        frames += [(place + 2, 2) for place in range(at, end) if raw[place] == 0xFF and raw[place + 1] >= 0xC0]
        frame = raw.find(b"\xff\xc0", at, end)
        frames += [(frame + offset, width) for offset, width in ((4, 1), (5, 2), (7, 2), (9, 1), (11, 1)) if frame >= 0]
        insides += [(place, 1) for place in range(at + 20, end, 3)]
        at = raw.find(b"\xff\xd8\xff", end)
    return [frames, insides]


def _png_numbers(raw: bytes) -> Places:
    """Width, height and kind of PNG files."""
    heads = [place + 4 for place in range(len(raw)) if raw.startswith(b"IHDR", place)]
    return [(head + at, width) for head in heads for at, width in ((0, 4), (4, 4), (8, 1), (9, 1), (12, 1))]


def _digest(parts: Iterable[Sequence[Any]]) -> str:
    digest = hashlib.sha256()
    for arrays in parts:
        for array in arrays:
            digest.update(repr((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
