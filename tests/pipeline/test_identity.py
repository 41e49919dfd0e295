"""Whether a set holds the images of a run, whatever the formats of both."""

import dataclasses
import json

import pytest
from inputs import make_ragged_set

from fast_train.data_prep import cli
from fast_train.data_prep.manifest import PreparedSet
from fast_train.pipeline.engine.identity import difference, identity


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One folder of images of several sizes, prepared in two formats."""
    root = tmp_path_factory.mktemp("sets")
    make_ragged_set(root / "source")
    source = PreparedSet.open(root / "source")
    for split in ("train", "test"):
        encoded = source.encoded(split)
        for number, label in enumerate(encoded.labels):
            place = root / "images" / split / "abc"[label] / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encoded.file(number).tobytes())
    for name in ("packed", "dali"):
        arguments = ["--dataset", f"folder:{root / 'images'}", "--formats", name, "--out", str(root / name)]
        assert cli.main(arguments) == 0
    return {name: PreparedSet.open(root / name) for name in ("packed", "dali")}


def _with(prepared, **changes):
    return dataclasses.replace(prepared, manifest=dataclasses.replace(prepared.manifest, **changes))


def test_an_identity_is_plain_values(sets):
    known = identity(sets["packed"])
    assert json.loads(json.dumps(known)) == known
    assert difference(known, sets["packed"], "packed") is None


def test_without_a_common_format_pixels_are_compared(sets):
    known, there = identity(sets["packed"]), sets["dali"]
    assert difference(known, there, "dali") is None
    changed = _with(there, pixels={**there.manifest.pixels, "test": "0" * 64})
    assert difference(known, changed, "dali") == "their pixels"
    # Sets and checkpoints of earlier versions say nothing of them.
    assert difference(known, _with(there, pixels={}), "dali") is None
    assert difference({**known, "pixels": None}, changed, "dali") is None
    assert difference({name: value for name, value in known.items() if name != "pixels"}, changed, "dali") is None


def test_where_a_format_is_common_its_files_tell(sets):
    known, there = identity(sets["packed"]), sets["packed"]
    assert difference(known, _with(there, pixels={"train": "0" * 64}), "packed") is None
    other = {**known, "files": {**known["files"], "train.safetensors": "0" * 64}}
    assert difference(other, there, "packed") == "train.safetensors"


def test_shapes_are_a_part_of_it(sets):
    there = sets["dali"]
    larger = dataclasses.replace(there.manifest.shape, side=there.manifest.shape.side + 1)
    assert difference(identity(sets["packed"]), _with(there, shape=larger), "dali") == "their shape"
