import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_train.kernels.order import epoch_order


@given(st.integers(0, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_is_a_permutation(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(count))


def test_is_a_pure_function_that_epoch_and_seed_change():
    order = epoch_order(50_000, seed=1, epoch=2)
    assert torch.equal(order, epoch_order(50_000, seed=1, epoch=2))
    assert not torch.equal(order, epoch_order(50_000, seed=1, epoch=3))
    assert not torch.equal(order, epoch_order(50_000, seed=2, epoch=2))


def test_every_permutation_of_four_is_as_likely():
    """Chi-squared over the 24 permutations, 2,400 epochs: 23 degrees of freedom, p = 0.999 at 49.7."""
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        key = tuple(epoch_order(4, seed=7, epoch=epoch).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 24
    assert sum((n - 100) ** 2 / 100 for n in seen.values()) < 49.7


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (4, -1), (4, 2**63)])
def test_bad_arguments(count, seed):
    with pytest.raises(ValueError, match="give"):
        epoch_order(count, seed=seed, epoch=0)


@pytest.mark.gpu
def test_gpu_gives_the_same_order():
    for epoch in range(3):
        on_gpu = epoch_order(50_000, seed=5, epoch=epoch, device="cuda")
        assert torch.equal(on_gpu.cpu(), epoch_order(50_000, seed=5, epoch=epoch))
