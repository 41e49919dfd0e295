"""Files whose content is known before they are here: by name, size and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_CHUNK = 1 << 20


@dataclass(frozen=True)
class KnownFile:
    """A file's name, size in bytes, SHA-256, and MD5 where that is what others publish."""

    name: str
    size: int
    sha256: str
    md5: str | None = None

    def fault(self, path: Path) -> str | None:
        """What is wrong with the file at ``path``, as a predicate ("is missing"); None where it is this file."""
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != self.size:
            return self._other_size(size)
        with open(path, "rb") as file:
            return self._wrong_sum(iter(partial(file.read, _CHUNK), b""))

    def fault_of(self, content: bytes) -> str | None:
        """`fault` of a content that is read already."""
        return self._other_size(len(content)) if len(content) != self.size else self._wrong_sum([content])

    def _other_size(self, size: int) -> str:
        return f"has {size:,} bytes, not {self.size:,}"

    def _wrong_sum(self, chunks: Iterable[bytes]) -> str | None:
        md5 = hashlib.md5(usedforsecurity=False)
        sha256 = hashlib.sha256()
        for chunk in chunks:
            md5.update(chunk)
            sha256.update(chunk)
        if self.md5 not in (None, md5.hexdigest()):
            return "has the wrong MD5"
        return None if sha256.hexdigest() == self.sha256 else "has the wrong SHA-256"
