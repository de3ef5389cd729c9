"""Masking for masked language models: which tokens are predicted is a pure function of (seed, epoch, sample)."""

import numpy as np
from numpy.typing import NDArray

from sortyard.data.options import MaskingOptions
from sortyard.data.order import MASK_STREAM
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError

IGNORED = -100


def mask_tokens(
    ids: NDArray[np.int64], *, epoch: int, sample: int, seed: int, options: MaskingOptions, vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose a row's targets and hide them.

    Words are taken in random order until the next one would exceed the budget of `options.probability` x the row's
    ordinary tokens; at least one word is always taken, so that no row is without a target.

    Args:
        ids: [T] the row's token ids, special tokens included.
        epoch: number of the epoch, from 0.
        sample: number of the row.
        seed: the run's seed.
        options: shares, and whether words are masked whole.
        vocabulary: special tokens and word borders.

    Returns:
        The ids the model sees, and the labels: the true id at targets, -100 elsewhere.

    Raises:
        InputError: the tokenizer has no mask token.

    Source: BERT (https://arxiv.org/abs/1810.04805) section 3.1, whole words as in its later release, and 30 % as in
        "Should you mask 15 %" (https://arxiv.org/abs/2202.08005).
    """
    if vocabulary.mask_id is None:
        raise InputError("tokenizer: it has no mask token, which masked language modelling needs")
    generator = np.random.default_rng((seed, MASK_STREAM, epoch, sample))
    targets = _choose(ids, generator, options=options, vocabulary=vocabulary)
    labels = np.full_like(ids, IGNORED)
    labels[targets] = ids[targets]
    inputs = ids.copy()
    draw = generator.random(len(targets))
    inputs[targets[draw < options.mask_share]] = vocabulary.mask_id
    randomised = targets[(draw >= options.mask_share) & (draw < options.mask_share + options.random_share)]
    ordinary = np.flatnonzero(~vocabulary.special)
    inputs[randomised] = generator.choice(ordinary, size=len(randomised))
    return inputs, labels


def _choose(
    ids: NDArray[np.int64], generator: np.random.Generator, *, options: MaskingOptions, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    special = vocabulary.special[ids]
    candidates = np.flatnonzero(~special)
    if not len(candidates):
        return candidates
    starts = ~special
    if options.whole_word:
        after_special = np.concatenate([[True], special[:-1]])
        starts &= ~vocabulary.continues_word[ids] | after_special
    words = np.cumsum(starts)[candidates] - 1
    sizes = np.bincount(words)
    order = generator.permutation(len(sizes))
    taken = int(np.searchsorted(np.cumsum(sizes[order]), options.probability * len(candidates), side="right"))
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    chosen[order[: max(1, taken)]] = True
    targets: NDArray[np.int64] = candidates[chosen[words]]
    return targets
