import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fast_train.data_prep.stats import ChannelHistogram, PixelHash, pixel_digest

_SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))


@given(hnp.arrays(np.uint8, _SHAPES))
def test_mean_and_std_are_those_of_the_pixels(images):
    histogram = ChannelHistogram(images.shape[-1])
    histogram.update(images)
    mean, std = histogram.mean_std()
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-9, atol=1e-9)


@given(hnp.arrays(np.uint8, _SHAPES), st.randoms(use_true_random=False))
def test_order_and_chunks_change_no_digit(images, random):
    order = list(range(len(images)))
    random.shuffle(order)
    whole, chunked = ChannelHistogram(images.shape[-1]), ChannelHistogram(images.shape[-1])
    whole.update(images)
    for i in order:
        chunked.update(images[i : i + 1])
    assert whole.mean_std() == chunked.mean_std()


def test_a_constant_channel_has_no_spread():
    histogram = ChannelHistogram(1)
    histogram.update(np.full((3, 7, 5, 1), 201, dtype=np.uint8))
    assert histogram.mean_std() == ((201 / 255,), (0.0,))


def _hash(images, labels):
    digest = PixelHash()
    digest.update(map(pixel_digest, images), np.array(labels))
    return digest.hexdigest()


def test_the_hash_is_of_shapes_pixels_labels_and_order():
    first, other = np.zeros((2, 3, 3), np.uint8), np.ones((2, 3, 3), np.uint8)
    hashes = [
        _hash([first, other], [0, 1]),
        _hash([first, other], [1, 0]),
        _hash([other, first], [0, 1]),
        _hash([first.reshape(3, 2, 3), other], [0, 1]),
        _hash([first, other[::-1, :, :], other], [0, 1, 1]),
    ]
    assert len(set(hashes)) == len(hashes)
    chunked = PixelHash()
    for image, label in ((first, 0), (other, 1)):
        chunked.update([pixel_digest(image)], np.array([label]))
    assert chunked.hexdigest() == hashes[0]
