"""The order of samples: a permutation for every size, uniform, computed where it is asked for."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from sortyard.data.order import global_samples, permuted, samples_at, share_of
from sortyard.errors import InputError


def epoch_of(count: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(count), num_samples=count, seed=seed, epoch=epoch)


@settings(deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_of(count, seed=seed, epoch=epoch).tolist()) == list(range(count))


@pytest.mark.parametrize("count", [2**16 - 1, 2**16, 2**16 + 1, 1_000_003])
def test_the_order_of_many_is_a_permutation(count: int) -> None:
    assert (np.sort(epoch_of(count)) == np.arange(count)).all()


@pytest.mark.parametrize("count", [2, 3, 7, 16, 40])
def test_every_sample_is_as_likely_at_every_position(count: int) -> None:
    orders = 4000
    seen = np.zeros((count, count))
    for seed in range(orders):
        seen[np.arange(count), epoch_of(count, seed=seed, epoch=1)] += 1
    expected = orders / count
    assert chi2.sf(((seen - expected) ** 2 / expected).sum(), df=(count - 1) ** 2) > 1e-4


def test_neighbours_in_the_data_are_no_neighbours_in_the_order() -> None:
    count = 200_000
    order = epoch_of(count).astype(np.float64)
    limit = 4 / count**0.5
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < limit
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < limit
    assert abs(np.corrcoef(order, epoch_of(count, epoch=1))[0, 1]) < limit
    assert (np.abs(np.diff(order)) == 1).sum() < 15  # 2 are expected
    parts = np.histogram2d(np.arange(count), order, bins=20)[0].ravel()
    assert 1e-4 < chi2.sf(((parts - count / 400) ** 2 / (count / 400)).sum(), df=19**2) < 1 - 1e-4


def test_the_order_changes_with_seed_and_epoch() -> None:
    first = epoch_of(50).tolist()
    assert first == epoch_of(50).tolist()
    assert first != epoch_of(50, epoch=1).tolist()
    assert first != epoch_of(50, seed=1).tolist()


def test_a_few_of_two_billion_need_no_memory() -> None:
    count = 2_000_000_000
    positions = np.arange(count - 4096, count)
    tracemalloc.start()
    try:
        found = permuted(positions, num_samples=count, seed=3, epoch=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert len(set(found.tolist())) == 4096
    assert 0 <= found.min() < 0.01 * count < 0.99 * count < found.max() < count
    np.testing.assert_array_equal(permuted(positions[7:8], num_samples=count, seed=3, epoch=5), found[7:8])


@settings(deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 25), seed=st.integers(0, 9))
def test_samples_run_across_epochs(count: int, batch: int, seed: int) -> None:
    steps = 2 * count // batch + 3
    pairs = [
        pair for step in range(steps) for pair in global_samples(step, batch_size=batch, num_samples=count, seed=seed)
    ]
    assert set(Counter(pairs).values()) == {1}
    assert len(pairs) == steps * batch
    assert [epoch for epoch, _ in pairs] == sorted(epoch for epoch, _ in pairs)
    assert pairs[5:9] == samples_at(np.arange(5, min(9, len(pairs))), num_samples=count, seed=seed)


@settings(deadline=None)
@given(num_rows=st.integers(1, 50), count=st.integers(1, 50))
def test_shares_are_cut_as_arrays_are_split(num_rows: int, count: int) -> None:
    if count > num_rows:
        with pytest.raises(InputError, match=r"loop.micro_batch_size: .* set it to"):
            share_of(num_rows, (0, count))
        return
    parts = [list(range(*share_of(num_rows, (index, count)))) for index in range(count)]
    assert parts == [part.tolist() for part in np.array_split(np.arange(num_rows), count)]
