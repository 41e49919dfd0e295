import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_train.kernels.philox import below, philox4x32, sample_words

WORD = st.integers(0, 2**32 - 1)


def _python_philox(seed, counter):
    """Philox4x32-10 in Python's whole numbers, written from the paper apart from the tensors' version."""
    c, k = list(counter), [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def _words(seed, counter):
    return [int(w) for w in philox4x32(seed, *(torch.tensor([c], dtype=torch.int64) for c in counter))]


def test_known_answers():
    """Random123's published vectors, kat_vectors, philox4x32 10 rounds."""
    assert _words(0, (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert _words(0x299F31D0A4093822, pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@given(st.integers(0, 2**63 - 1), st.tuples(WORD, WORD, WORD, WORD))
def test_equals_whole_number_arithmetic(seed, counter):
    assert _words(seed, counter) == _python_philox(seed, counter)


def test_the_lower_32_bits_of_index_and_epoch_count():
    """As in Triton, whose words have no others."""
    indices = torch.tensor([5, 2**32 - 1])
    words = sample_words(9, 3, indices, 1)
    assert all(map(torch.equal, words, sample_words(9, 3 + 2**32, indices + 2**40, 1)))


@given(WORD, st.integers(1, 4096))
def test_below_stays_below(word, bound):
    assert int(below(torch.tensor([word]), bound)) == word * bound // 2**32
