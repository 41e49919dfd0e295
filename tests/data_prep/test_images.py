import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from fast_train.data_prep.images import BadImageError, Reading, read_header, read_rgb

# Pillow warns of damage that it then reads past or refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

_SIDES = st.tuples(st.integers(1, 20), st.integers(1, 20))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "image"


def _pixels(channels):
    return _SIDES.flatmap(lambda side: hnp.arrays(np.uint8, (*side, *channels)))


def _read(place, image, format="PNG", *, reading=None, **options):
    image.save(place, format=format, **options)
    return read_rgb(str(place), None, reading).pixels


@given(pixels=_pixels((3,)), format=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]))
def test_rgb_is_kept(place, pixels, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.array_equal(_read(place, Image.fromarray(pixels), format, **options), pixels)
    assert read_header(str(place))[:4] == (*pixels.shape[:2], 0, 0)


@given(pixels=_pixels(()))
def test_grey_is_repeated(place, pixels):
    assert np.array_equal(_read(place, Image.fromarray(pixels)), np.repeat(pixels[..., None], 3, axis=2))


@given(
    pixels=_pixels((4,)),
    format=st.sampled_from(["PNG", "TIFF"]),
    ground=st.tuples(*(st.integers(0, 255) for _ in "rgb")),
)
def test_transparency_shows_the_background(place, pixels, format, ground):
    share = pixels[..., 3:] / 255
    expected = pixels[..., :3] * share + np.array(ground) * (1 - share)
    read = _read(place, Image.fromarray(pixels, "RGBA"), format, reading=Reading(ground))
    assert np.abs(read - expected).max() <= 1
    assert read_rgb(str(place)).transparent == (share.min() < 1)


@given(pixels=_pixels((2,)))
def test_transparent_grey_lies_on_black_unless_told(place, pixels):
    expected = pixels[..., :1].astype(float) * pixels[..., 1:] / 255
    assert np.abs(_read(place, Image.fromarray(pixels, "LA")) - expected).max() <= 1


@given(
    pixels=_SIDES.flatmap(lambda side: hnp.arrays(np.uint16, side)),
    format=st.sampled_from(["PNG", "TIFF"]),
    bits=st.integers(8, 16),
)
def test_sixteen_bits_are_scaled_by_those_in_use(place, pixels, format, bits):
    pixels >>= 16 - bits
    read = _read(place, Image.fromarray(pixels), format, reading=Reading(bits=bits))
    assert np.abs(read - pixels[..., None] / ((2**bits - 1) / 255)).max() <= 0.5 + 1e-9
    header = read_header(str(place))
    assert (header.height, header.width, header.colour_bits) == (*pixels.shape, 0)
    assert header.grey_bits == int(pixels.max()).bit_length()


@given(
    pixels=_pixels((3,)),
    shape=_SIDES,
    fit=st.sampled_from(["crop", "pad", "stretch"]),
    ground=st.tuples(*(st.integers(0, 255) for _ in "rgb")),
)
def test_another_shape_is_fitted_as_pillow_does_it(place, pixels, shape, fit, ground):
    image, size = Image.fromarray(pixels), shape[::-1]
    # Where a strip is left, Pillow pads nothing: the next test.
    assume(
        fit != "pad" or min(round(min(a / b for a, b in zip(size, image.size, strict=True)) * s) for s in image.size)
    )
    resampling = Image.Resampling.LANCZOS
    expected = {
        "crop": lambda: ImageOps.fit(image, size, resampling),
        "pad": lambda: ImageOps.pad(image, size, resampling, color=ground),
        "stretch": lambda: image.resize(size, resampling),
    }[fit]()
    image.save(place, format="PNG")
    picture = read_rgb(str(place), shape, Reading(ground, fit=fit))
    assert np.array_equal(picture.pixels, np.asarray(expected))
    assert picture.resized == (pixels.shape[:2] != shape)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("sides", [(300, 1), (1, 300), (900, 4), (64, 64)])
def test_what_is_padded_is_whole_in_the_middle(place, sides, format):
    Image.new("RGB", sides, (250, 250, 250)).save(place, format=format)
    stored = read_rgb(str(place), (8, 8), Reading((3, 2, 1), fit="pad")).pixels
    rows, columns = np.where((stored == 250).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == tuple(1 if s < max(sides) else 8 for s in sides[::-1])
    assert abs(rows.mean() - 3.5) <= 0.5
    assert abs(columns.mean() - 3.5) <= 0.5
    assert {tuple(pixel) for pixel in stored.reshape(-1, 3)} <= {(250, 250, 250), (3, 2, 1)}


@pytest.mark.parametrize(
    "record", [{"fit": "squash"}, {"fit": ["pad"]}, {"bits": 7}, {"background": [0, 0]}, {"background": [0, 0, 256]}]
)
def test_a_reading_that_no_program_wrote_is_refused(record):
    assert Reading.from_dict({}) == Reading()
    with pytest.raises(ValueError, match="not usable; train anew"):
        Reading.from_dict(record)


def test_sixteen_bits_a_colour_are_noticed(place):
    # Three samples of 16 bits, of which 12 are in use; Pillow writes no such file.
    rows = b"".join(b"\0" + struct.pack(">6H", *[4095] * 6) for _ in range(2))
    place.write_bytes(_png((b"IHDR", struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))))
    assert read_header(str(place))[:4] == (2, 2, 0, 12)


@given(indices=_SIDES.flatmap(lambda side: hnp.arrays(np.uint8, side)), transparent=st.none() | st.integers(0, 255))
def test_palettes_are_looked_up(place, indices, transparent):
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    expected = palette[indices]
    if transparent is not None:
        expected[indices == transparent] = 0
    options = {} if transparent is None else {"transparency": transparent}
    assert np.array_equal(_read(place, image, **options), expected)


@given(bits=_SIDES.flatmap(lambda side: hnp.arrays(np.bool_, side)))
def test_single_bits_are_black_and_white(place, bits):
    assert np.array_equal(_read(place, Image.fromarray(bits)), np.repeat(bits[..., None], 3, axis=2) * np.uint8(255))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_the_colour_one_sees(place, format):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(_read(place, red, format).astype(int) - [255, 0, 0]).max() <= 3


# Which stored corner is seen at the top left: EXIF 2.3, section 4.6.4, tag Orientation.
_TOP_LEFT = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "bl", 7: "br", 8: "tr"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "format, mode",
    [("JPEG", "RGB"), ("PNG", "RGB"), ("WEBP", "RGB"), *(("TIFF", m) for m in ("L", "RGB", "RGBA", "CMYK", "I;16"))],
)
def test_exif_orientation_is_applied(place, orientation, format, mode):
    black, white = {
        "L": (0, 255),
        "RGB": ((0, 0, 0), (255, 255, 255)),
        "RGBA": ((0, 0, 0, 255), (255, 255, 255, 255)),
        "CMYK": ((0, 0, 0, 255), (0, 0, 0, 0)),
        "I;16": (0, 65535),
    }[mode]
    stored = Image.new(mode, (48, 32), black)
    top, left = _TOP_LEFT[orientation]
    x, y = (0 if left == "l" else 32), (0 if top == "t" else 16)
    stored.paste(white, (x, y, x + 16, y + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(place, format=format, exif=exif, quality=95)
    shown = read_rgb(str(place))[0]
    assert shown.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    assert shown[:8, :8].min() > 200
    assert shown[-8:, -8:].max() < 50
    assert shown[-8:, :8].max() < 50
    assert shown[:8, -8:].max() < 50
    assert read_header(str(place))[:2] == shown.shape[:2]


def _png(*chunks):
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, bytes(4) + b"IEND\xaeB`\x82"])


def _exif(*entries):
    """EXIF data of entries (tag, type, count, four bytes); the last says that the image is turned."""
    turned = (0x0112, 3, 1, struct.pack("<H", 6))
    packed = [struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in (*entries, turned)]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(packed)) + b"".join(packed) + bytes(4)


# A number that is a text, a text and a directory that lie behind the end, a type and a count that there are not.
_BROKEN_ENTRIES = [
    (0x011A, 2, 3, b"72"),
    (0x010F, 2, 40, b"\xf0\xff\xff\x7f"),
    (0x8769, 4, 1, b"\xf0\xff\xff\x7f"),
    (0x0110, 99, 7, b"abcd"),
    (0x011B, 5, 0xFFFFFFFF, b""),
]


@pytest.mark.parametrize("broken", _BROKEN_ENTRIES, ids=lambda entry: hex(entry[0]))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_entry_costs_neither_image_nor_orientation(place, format, broken):
    Image.new("RGB", (40, 20), (200, 10, 10)).save(place, format=format, exif=_exif(broken))
    assert read_header(str(place))[:4] == (40, 20, 0, 0)
    assert read_rgb(str(place)).pixels.shape == (40, 20, 3)


def test_broken_entries_of_a_tiff_cost_no_pixel(place):
    pixels = np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3)
    Image.fromarray(pixels).save(place, format="TIFF", tiffinfo={0x0112: 6, 0x9997: 7, 0x9998: 7, 0x9999: 7})
    data = bytearray(place.read_bytes())
    # Pixels a centimetre, as texts.
    for tag, entry in (
        (0x9997, (0x011A, 2, 3, b"72")),
        (0x9998, (0x011B, 2, 3, b"72")),
        (0x9999, (0x0128, 3, 1, b"\3")),
    ):
        struct.pack_into("<HHI4s", data, data.index(struct.pack("<H", tag)), *entry)
    place.write_bytes(data)
    assert read_header(str(place))[:4] == (40, 20, 0, 0)
    assert np.array_equal(read_rgb(str(place)).pixels, np.rot90(pixels, -1))


_LARGE_TEXT = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"profile\0\0" + _LARGE_TEXT),
        (b"zTXt", b"Comment\0\0" + _LARGE_TEXT),
        (b"zTXt", b"Raw profile type exif\0\0" + _LARGE_TEXT),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _LARGE_TEXT),
        (b"pHYs", b""),
        (b"eXIf", b"nonsense"),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_what_else_a_png_holds_costs_no_pixel(place, chunk, before):
    head = b"IHDR", struct.pack(">2I5B", 2, 2, 8, 0, 0, 0, 0)
    body = b"IDAT", zlib.compress(b"\0\1\2\0\3\4")
    place.write_bytes(_png(head, chunk, body) if before else _png(head, body, chunk))
    assert read_header(str(place))[:4] == (2, 2, 0, 0)
    assert read_rgb(str(place)).pixels[..., 0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["eXIf", "zTXt", "tEXt", "iTXt"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_png_is_turned_wherever_it_says_so(place, kind, before):
    exif = _exif().removeprefix(b"Exif\0\0")
    in_hex = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    content = {
        "eXIf": exif,
        "zTXt": b"Raw profile type exif\0\0" + zlib.compress(in_hex),
        "tEXt": b"Raw profile type exif\0" + in_hex,
        "iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
    }[kind]
    chunk = kind.encode(), content
    head = b"IHDR", struct.pack(">2I5B", 2, 1, 8, 0, 0, 0, 0)
    body = b"IDAT", zlib.compress(b"\0\1\2")
    place.write_bytes(_png(head, chunk, body) if before else _png(head, body, chunk))
    assert read_header(str(place))[:4] == (2, 1, 0, 0)
    assert read_rgb(str(place)).pixels[..., 0].tolist() == [[1], [2]]


def test_no_image_starts_a_program(place, tmp_path, monkeypatch):
    """An EPS goes to Ghostscript, which Pillow finds inside of IPTC data, whatever the file is called."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\x0a"), (3, 30, b"\0\x0a"), (3, 120, b"\5"), (8, 10, eps)]
    iptc = b"".join(struct.pack(">3BH", 0x1C, record, name, len(data)) + data for record, name, data in fields)
    for content in (eps, iptc):
        place.write_bytes(content)
        for read in (read_header, read_rgb):
            with pytest.raises(BadImageError, match="not an image of a known format"):
                read(str(place))
    assert not started.exists()


def test_a_jpeg_of_endless_scans_is_bad(place):
    Image.new("L", (16, 16)).save(place, format="JPEG", progressive=True)
    whole = place.read_bytes()
    start = whole.rindex(b"\xff\xda")
    place.write_bytes(whole[:start] + whole[start:-2] * 2000 + whole[-2:])
    with pytest.raises(BadImageError, match="scans"):
        read_rgb(str(place))


def test_resizing_covers_the_square_and_keeps_its_centre(place):
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 60, 30))
    wide.save(place, format="PNG")
    pixels, resized, _ = read_rgb(str(place), (10, 10))
    assert resized
    assert pixels.shape == (10, 10, 3)
    assert np.abs(pixels[:, 1:-1].astype(int) - [0, 0, 255]).max() <= 40
    assert not read_rgb(str(place), (30, 90)).resized


def test_resizing_is_antialiased(place):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(place, format="PNG")
    assert np.abs(read_rgb(str(place), (8, 8))[0].astype(int) - 128).max() < 20


def test_a_large_jpeg_shrinks_to_what_its_pixels_are(place):
    y, x = np.mgrid[:800, :1200]
    smooth = np.stack([x / 1200 * 255, y / 800 * 255, (x + y) / 2000 * 255], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(place, format="JPEG", quality=95)
    pixels, *_ = read_rgb(str(place), (32, 32))
    centre = smooth[:, 200:1000].reshape(32, 25, 32, 25, 3).mean(axis=(1, 3))
    assert np.abs(pixels - centre).max() < 6


def test_of_an_animation_the_first_frame_counts(place):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(place, format="GIF", save_all=True, append_images=frames[1:])
    assert (read_rgb(str(place))[0] == [255, 0, 0]).all()


def _saved(format):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_of_no_known_range_are_bad(place, mode):
    Image.new(mode, (4, 4), 7).save(place, format="TIFF")
    for read in (read_header, read_rgb):
        with pytest.raises(BadImageError, match="no known range"):
            read(str(place))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@given(share=st.floats(0, 0.9))
def test_a_truncated_file_is_bad(place, format, share):
    whole = _saved(format)
    place.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadImageError):
        read_rgb(str(place))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@given(data=st.data())
def test_damage_is_bad_or_harmless(place, format, data):
    damaged = bytearray(_saved(format))
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(damaged)
    try:
        pixels, *_ = read_rgb(str(place), (8, 8))
    except BadImageError as error:
        reason = str(error)
    else:
        assert pixels.shape == (8, 8, 3)
        return
    assert len(reason.splitlines()) == 1


def test_what_is_no_image_is_bad(place, tmp_path, monkeypatch):
    place.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(BadImageError, match="not an image of a known format"):
        read_header(str(place))
    place.write_bytes(b"")
    with pytest.raises(BadImageError, match="empty file"):
        read_header(str(place))
    with pytest.raises(BadImageError, match="No such file"):
        read_header(str(tmp_path / "absent"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 30):
        Image.new("L", (side, side)).save(place, format="PNG")
        with pytest.raises(BadImageError, match="more than the 100 that are read"):
            read_header(str(place))
