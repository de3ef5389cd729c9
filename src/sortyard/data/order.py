"""The order of training samples, as a pure function of the seed and the step.

Resuming needs no state but the step, and any process can name any sample of any step: nothing is held in memory,
however many samples there are.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sortyard.errors import InputError

Share = tuple[int, int]
"""A data-parallel process' part of a micro-batch: (index, count), the index-th of count parts, from 0."""

ORDER_STREAM = 1
MASK_STREAM = 2
SPLIT_STREAM = 3
GROUP_STREAM = 4

_ROUNDS = 12


def permuted(positions: NDArray[np.int64], *, num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return which sample stands at each position of an epoch, by a keyed permutation of `range(num_samples)`.

    A Feistel network permutes the numbers of the smallest sufficient number of bits; a result beyond `num_samples` is
    put in again until it lands inside (fewer than two passes on average).

    Args:
        positions: [n] positions in the epoch, 0 to num_samples - 1.
        num_samples: samples of an epoch.
        seed: the run's seed.
        epoch: number of the epoch, from 0.

    Returns:
        [n] numbers of samples.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002): cycle walking. The round function
        is SplitMix64's finaliser: good mixing, no cryptography. Halves may differ by one bit, so that the domain is
        less than twice the samples.
    """
    num_bits = max(1, (num_samples - 1).bit_length())
    keys = _keys(seed, epoch)
    found = positions.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _shuffled(found[outside], keys, num_bits=num_bits)
        outside = outside[found[outside] >= num_samples]
    return found.astype(np.int64)


def samples_at(positions: NDArray[np.int64], *, num_samples: int, seed: int) -> list[tuple[int, int]]:
    """Return the (epoch, sample) at each position of a run, whose epochs follow one another.

    Args:
        positions: [n] positions in the run, from 0.
        num_samples: samples of an epoch.
        seed: the run's seed.
    """
    epochs, ranks = np.divmod(positions, num_samples)
    samples = np.empty_like(ranks)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        samples[chosen] = permuted(ranks[chosen], num_samples=num_samples, seed=seed, epoch=int(epoch))
    return list(zip(epochs.tolist(), samples.tolist(), strict=True))


def global_samples(step: int, *, batch_size: int, num_samples: int, seed: int) -> list[tuple[int, int]]:
    """Return the samples of one optimizer step, which may run across the border of an epoch.

    Args:
        step: optimizer step, from 0.
        batch_size: samples of a step.
        num_samples: samples of an epoch.
        seed: the run's seed.

    Returns:
        `batch_size` pairs (epoch, sample).
    """
    first = step * batch_size
    return samples_at(np.arange(first, first + batch_size), num_samples=num_samples, seed=seed)


def share_of(num_rows: int, share: Share) -> tuple[int, int]:
    """Return the first row of a share of a micro-batch and the row after its last, as `numpy.array_split` cuts.

    Raises:
        InputError: there are fewer rows than shares.
    """
    index, count = share
    assert 0 <= index < count, share
    if count > num_rows:
        raise InputError(
            f"loop.micro_batch_size: {count} data-parallel processes cannot share a micro-batch of {num_rows} row(s), "
            f"of which each needs one; set it to {count} or more (with fewer loop.accumulation_steps the step stays as "
            "large), or start fewer data-parallel processes"
        )
    size, larger = divmod(num_rows, count)
    first = index * size + min(index, larger)
    return first, first + size + (index < larger)


@lru_cache(maxsize=4)
def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    return np.asarray(np.random.SeedSequence((seed, ORDER_STREAM, epoch)).generate_state(_ROUNDS, np.uint64), np.uint64)


def _shuffled(values: NDArray[np.uint64], keys: NDArray[np.uint64], *, num_bits: int) -> NDArray[np.uint64]:
    """Permute the numbers of `num_bits` bits: each round changes one half by a function of the other half."""
    low_bits = np.uint64(num_bits - num_bits // 2)
    low_mask, high_mask = (np.uint64((1 << bits) - 1) for bits in (num_bits - num_bits // 2, num_bits // 2))
    high, low = values >> low_bits, values & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mixed(high ^ key) & low_mask)
        else:
            high = high ^ (_mixed(low ^ key) & high_mask)
    return (high << low_bits) | low


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
