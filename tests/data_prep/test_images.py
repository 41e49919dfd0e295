import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fast_train.data_prep.images import BadImageError, read_rgb, read_size

# Pillow warns of damage that it then reads past or refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

_SIDES = st.tuples(st.integers(1, 20), st.integers(1, 20))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "image"


def _pixels(channels):
    return _SIDES.flatmap(lambda side: hnp.arrays(np.uint8, (*side, *channels)))


def _read(place, image, format="PNG", **options):
    image.save(place, format=format, **options)
    return read_rgb(str(place))[0]


@given(pixels=_pixels((3,)), format=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]))
def test_rgb_is_kept(place, pixels, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.array_equal(_read(place, Image.fromarray(pixels), format, **options), pixels)
    assert read_size(str(place)) == pixels.shape[:2]


@given(pixels=_pixels(()))
def test_grey_is_repeated(place, pixels):
    assert np.array_equal(_read(place, Image.fromarray(pixels)), np.repeat(pixels[..., None], 3, axis=2))


@given(pixels=_pixels((4,)), format=st.sampled_from(["PNG", "TIFF"]))
def test_transparency_lies_on_black(place, pixels, format):
    expected = pixels[..., :3].astype(float) * pixels[..., 3:] / 255
    assert np.abs(_read(place, Image.fromarray(pixels, "RGBA"), format) - expected).max() <= 1


@given(pixels=_pixels((2,)))
def test_transparent_grey_lies_on_black(place, pixels):
    expected = pixels[..., :1].astype(float) * pixels[..., 1:] / 255
    assert np.abs(_read(place, Image.fromarray(pixels, "LA")) - expected).max() <= 1


@given(pixels=_SIDES.flatmap(lambda side: hnp.arrays(np.uint16, side)), format=st.sampled_from(["PNG", "TIFF"]))
def test_sixteen_bits_are_scaled(place, pixels, format):
    read = _read(place, Image.fromarray(pixels), format)
    assert np.abs(read - pixels[..., None] / 257).max() <= 0.5


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
    assert read_size(str(place)) == shown.shape[:2]


def test_resizing_covers_the_square_and_keeps_its_centre(place):
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 60, 30))
    wide.save(place, format="PNG")
    pixels, resized = read_rgb(str(place), (10, 10))
    assert resized
    assert pixels.shape == (10, 10, 3)
    assert np.abs(pixels[:, 1:-1].astype(int) - [0, 0, 255]).max() <= 40
    assert read_rgb(str(place), (30, 90))[1] is False


def test_resizing_is_antialiased(place):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(place, format="PNG")
    assert np.abs(read_rgb(str(place), (8, 8))[0].astype(int) - 128).max() < 20


def test_a_large_jpeg_shrinks_to_what_its_pixels_are(place):
    y, x = np.mgrid[:800, :1200]
    smooth = np.stack([x / 1200 * 255, y / 800 * 255, (x + y) / 2000 * 255], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(place, format="JPEG", quality=95)
    pixels, _ = read_rgb(str(place), (32, 32))
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
    for read in (read_size, read_rgb):
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
        pixels, _ = read_rgb(str(place), (8, 8))
    except BadImageError as error:
        reason = str(error)
    else:
        assert pixels.shape == (8, 8, 3)
        return
    assert len(reason.splitlines()) == 1


def test_what_is_no_image_is_bad(place, tmp_path, monkeypatch):
    place.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(BadImageError, match="not an image that Pillow can read"):
        read_size(str(place))
    place.write_bytes(b"")
    with pytest.raises(BadImageError, match="empty file"):
        read_size(str(place))
    with pytest.raises(BadImageError, match="No such file"):
        read_size(str(tmp_path / "absent"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 30):
        Image.new("L", (side, side)).save(place, format="PNG")
        with pytest.raises(BadImageError, match="more than the 100 that are read"):
            read_size(str(place))
