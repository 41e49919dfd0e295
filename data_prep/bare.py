"""Image files without what their pixels don't need, and which way up they are shown.

Colour profiles, comments, previews and EXIF data may be large or broken where the pixels are fine. Pillow parses all of
it, and refuses the file for it; so it gets PNG, JPEG and TIFF files without. Of the rest the orientation alone is read.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

#: A file as Pillow gets it, and its orientation: 1 to 8 as in EXIF 2.3, section 4.6.4; None: Pillow knows.
Bare = tuple[BinaryIO, int | None]

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
# More than any EXIF data; a compressed chunk of a PNG may hold a thousand times what it takes in the file.
_MOST_TEXT = 1 << 20
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_TEXTS = {b"eXIf", b"zTXt", b"tEXt", b"iTXt"}
_PNG_EXIF_TEXT = b"Raw profile type exif\0"
_PNG_XMP_TEXT = b"XML:com.adobe.xmp\0"
# Of the markers that have a length, those to leave out: application data but JFIF's and Adobe's, which tell the
# colours, and comments.
_JPEG_NEEDLESS = {0xFFFE, *range(0xFFE1, 0xFFEE), 0xFFEF}
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_START, _JPEG_SCAN = 0xFFD8, 0xFFDA
_JPEG_SCAN_HEAD = 64
# A camera writes 1 or some 10; a small file of many takes minutes. More than that may lie in what follows the image.
_JPEG_MOST_SCANS = 1000
# Sizes, samples, compression, places of strips and tiles, colours; all of TIFF 6.0 and libtiff that tell of pixels.
_TIFF_PIXELS = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293),
    *(317, 320, 322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), *range(529, 533)),
}


def strip(file: BinaryIO, *, pixels: bool = True) -> Bare:
    """What Pillow needs of an open image file, and the orientation. pixels: whether these will be read; the size will.

    A file of another format, or one that can't be followed, comes back as it is.
    """
    start = file.read(8)
    file.seek(0)
    if start == b"\x89PNG\r\n\x1a\n":
        return _png(file, pixels)
    if start[:3] == b"\xff\xd8\xff":
        return _jpeg(file, pixels)
    if start[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(file)
    # Pillow turns the pixels of a large TIFF by itself.
    return file, 1 if start[:4] in (b"II+\0", b"MM\0+") else None


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """1 to 8; 1, as stored, where neither says. exif: a TIFF structure. A broken entry costs no other one."""
    if not (exif or xmp):
        return 1
    try:
        order, _, entries = _directory(exif.removeprefix(_JPEG_EXIF))
        found = _orientation_in(order, entries)
    except struct.error:
        found = None
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found or 1


def _orientation_in(order: str, entries: list[bytes]) -> int | None:
    for entry in entries:
        tag, kind = struct.unpack_from(order + "HH", entry)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(order + {1: "B", 4: "I"}.get(kind, "H"), entry, 8)
            return value if 1 <= value <= 8 else 1
    return None


def _directory(data: bytes | bytearray) -> tuple[str, int, list[bytes]]:
    """The byte order of a TIFF structure, the place of its first directory, and its entries of 12 bytes; struct.error
    where there is none."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [bytes(data[i : i + 12]) for i in range(start + 2, start + 2 + 12 * count, 12)]
    return order, start, entries


def _png(file: BinaryIO, pixels: bool) -> Bare:
    exif = xmp = b""
    kept = [file.read(8)]
    kind = b""
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IDAT" and not pixels:
            kept.append(head)
            file.seek(length + 4, 1)
        elif kind in _PNG_PIXELS:
            kept += head, file.read(length + 4)
        else:
            text = file.read(min(length, _MOST_TEXT)) if kind in _PNG_TEXTS else b""
            file.seek(length + 4 - len(text), 1)
            if kind == b"eXIf":
                exif = text
            elif text.startswith(_PNG_EXIF_TEXT):
                exif = exif or _exif_in_hex(text.removeprefix(_PNG_EXIF_TEXT), compressed=kind == b"zTXt")
            elif text.startswith(_PNG_XMP_TEXT):
                xmp = text
    return BytesIO(b"".join(kept)), orientation_of(exif, xmp)


def _exif_in_hex(text: bytes, *, compressed: bool) -> bytes:
    """EXIF data as ImageMagick writes them: three lines, then pairs of digits."""
    try:
        plain = zlib.decompressobj().decompress(text[1:], _MOST_TEXT) if compressed else text
        return bytes.fromhex(b"".join(plain.split(b"\n")[3:]).decode())
    except (zlib.error, ValueError):
        return b""


def _jpeg(file: BinaryIO, pixels: bool) -> Bare:
    exif = xmp = b""
    kept = []
    for marker, segment in _segments(file):
        if marker not in _JPEG_NEEDLESS:
            kept.append(segment)
        elif segment[4:].startswith(_JPEG_EXIF) and not exif:
            exif = segment[4:]
        elif segment[4:].startswith(_JPEG_XMP):
            xmp = segment
    rest = file.read(_JPEG_SCAN_HEAD)
    if pixels or not rest.startswith(b"\xff\xda"):
        rest += file.read()
    if rest.count(b"\xff\xda") > _JPEG_MOST_SCANS:
        raise ValueError(f"a JPEG of more than {_JPEG_MOST_SCANS:,} scans, which takes too long; save it anew")
    return BytesIO(b"".join((*kept, rest))), orientation_of(exif, xmp)


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The marker and the bytes of each segment up to the first scan, or to what is none; the file stands there then."""
    yield _JPEG_START, file.read(2)
    while len(head := file.read(4)) == 4:
        marker, length = struct.unpack(">HH", head)
        if marker == 0xFFFF:
            # Any number of these bytes may come before a marker.
            file.seek(-3, 1)
        elif marker < 0xFFC0 or 0xFFD0 <= marker <= _JPEG_SCAN or length < 2:
            file.seek(-4, 1)
            return
        else:
            yield marker, head + file.read(length - 2)
    file.seek(-len(head), 1)


def _tiff(file: BinaryIO) -> Bare:
    data = bytearray(file.read())
    try:
        order, start, entries = _directory(data)
        orientation = _orientation_in(order, entries) or 1
        wanted = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_PIXELS]
    except struct.error:
        return BytesIO(data), 1
    # The first directory gets shorter, in its place, and the last one.
    new = struct.pack(order + "H", len(wanted)) + b"".join(wanted) + bytes(4)
    data[start : start + len(new)] = new
    return BytesIO(data), orientation
