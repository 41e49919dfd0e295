"""Every file format by its name."""

from __future__ import annotations

from fast_train.data_prep.formats.base import FormatOptions, RaggedWriter, SplitWriter, Writer
from fast_train.data_prep.formats.beton import BetonWriter, RaggedBetonWriter
from fast_train.data_prep.formats.packed import PackedWriter
from fast_train.data_prep.formats.ragged import RaggedPackedWriter
from fast_train.data_prep.formats.tfrecord import RaggedTFRecordWriter, TFRecordWriter

__all__ = ["RAGGED_WRITERS", "WRITERS", "FormatOptions", "RaggedWriter", "SplitWriter", "Writer"]

WRITERS: dict[str, type[Writer]] = {"packed": PackedWriter, "ffcv": BetonWriter, "dali": TFRecordWriter}
#: Of images that keep their own shapes.
RAGGED_WRITERS: dict[str, type[RaggedWriter]] = {
    "packed": RaggedPackedWriter,
    "ffcv": RaggedBetonWriter,
    "dali": RaggedTFRecordWriter,
}
