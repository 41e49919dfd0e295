"""The files that a split's images came from, in the order of the images: ``SPLIT.names``.

Each name is followed by a zero byte, the one that no file's name holds: ``tr '\\0' '\\n' < test.names`` prints them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: In the place of a format in the manifest's entry of such a file.
NAMES = "names"


def encode_names(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def decode_names(content: bytes) -> list[str]:
    """The names; bytes that are not text become what Python has in their place (`os.fsdecode`)."""
    return [os.fsdecode(name) for name in content.split(b"\0")[:-1]]
