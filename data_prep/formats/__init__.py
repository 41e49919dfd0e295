"""Every file format by its name."""

from __future__ import annotations

from fast_train.data_prep.formats.base import FormatOptions, Writer
from fast_train.data_prep.formats.beton import BetonWriter
from fast_train.data_prep.formats.packed import PackedWriter
from fast_train.data_prep.formats.tfrecord import TFRecordWriter

__all__ = ["WRITERS", "FormatOptions", "Writer"]

WRITERS: dict[str, type[Writer]] = {"packed": PackedWriter, "ffcv": BetonWriter, "dali": TFRecordWriter}
