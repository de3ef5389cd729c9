"""The order of training samples, as a pure function of the seed and the step: resuming needs no state but the step."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDER_STREAM = 1
MASK_STREAM = 2
SPLIT_STREAM = 3
GROUP_STREAM = 4


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits its samples: a read-only permutation of `range(num_samples)`."""
    return _permutation(num_samples, seed, epoch)


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng((seed, ORDER_STREAM, epoch)).permutation(num_samples)
    order.setflags(write=False)
    return order


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
    pairs = []
    for position in range(first, first + batch_size):
        epoch, rank = divmod(position, num_samples)
        pairs.append((epoch, int(epoch_order(num_samples, seed=seed, epoch=epoch)[rank])))
    return pairs
