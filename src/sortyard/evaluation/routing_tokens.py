"""Which pieces of the vocabulary an expert gets more often than the others do."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class TokenLift(NamedTuple):
    """A piece of the vocabulary at one expert.

    Attributes:
        token: the piece's id.
        copies: how often the expert got it.
        lift: its share of the expert's copies over its share of all copies; above 1 the expert has more than its part.
    """

    token: int
    copies: int
    lift: float


def token_lifts(counts: ArrayLike, *, limit: int) -> tuple[tuple[TokenLift, ...], ...]:
    """Find the pieces that mark each expert of a layer.

    lift(x, e) = p(x | e) / p(x), with p(x | e) the share of piece x among the copies of expert e and p(x) its share
    among the layer's copies. Lift alone would list words that were seen once, so pieces are ranked by
    p(x | e) * ln lift(x, e), what a piece adds to the divergence KL(p(. | e) || p) of the expert's text from the rest.

    Args:
        counts: routed copies [E, V] by expert and piece.
        limit: pieces of an expert at most.

    Returns:
        For each expert its pieces with a lift above 1, the strongest first; none for an expert without copies.

    Source: the terms of the Kullback-Leibler divergence. OLMoE (arXiv:2409.02060, section 5.4) reads the same table by
        rows: the share of a piece's copies that an expert gets is lift times the expert's share of all copies.
    """
    table = np.asarray(counts)
    whole = table.sum(axis=0, dtype=np.float64)
    seen = np.flatnonzero(whole)
    whole = whole[seen] / whole.sum()
    return tuple(_strongest(row[seen], whole, tokens=seen, limit=limit) for row in table)


def _strongest(
    row: NDArray[np.integer], whole: NDArray[np.float64], *, tokens: NDArray[np.intp], limit: int
) -> tuple[TokenLift, ...]:
    if not row.any():
        return ()
    share = row / row.sum(dtype=np.float64)
    lift = share / whole
    weight = share * np.log(lift, out=np.zeros_like(lift), where=lift > 0)
    order = np.argsort(-weight, kind="stable")[:limit]
    return tuple(TokenLift(int(tokens[i]), int(row[i]), float(lift[i])) for i in order if lift[i] > 1)
