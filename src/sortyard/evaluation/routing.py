"""How evenly experts are used, from counts of routed copies alone: no model is needed here."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def utilisation(loads: ArrayLike) -> FloatArray:
    """Compute U_H = exp(H(f)) / N, the effective share of experts.

    Args:
        loads: counts [..., E]; every row must hold some.

    Returns:
        Values [...] in [1/N, 1].
    """
    shares = _shares(loads)
    return np.asarray(np.exp(_entropy(shares)) / shares.shape[-1])


def inverse_simpson(loads: ArrayLike) -> FloatArray:
    """Compute U_2 = 1 / (N * sum f^2) = 1 / (1 + CV^2).

    Args:
        loads: counts [..., E].

    Returns:
        Values [...] in [1/N, 1].
    """
    shares = _shares(loads)
    return np.asarray(1 / (shares.shape[-1] * np.square(shares).sum(axis=-1)))


def share_used(loads: ArrayLike, *, threshold: float = 0.25) -> FloatArray:
    """Compute the share of experts that get at least `threshold` of their fair load.

    Args:
        loads: counts [..., E].
        threshold: share of the fair load 1/N, at least 0.

    Returns:
        Values [...] in [0, 1].
    """
    shares = _shares(loads)
    return np.asarray((shares * shares.shape[-1] >= threshold).mean(axis=-1))


def variation(loads: ArrayLike) -> FloatArray:
    """Compute the coefficient of variation: standard deviation of the loads over their mean.

    Args:
        loads: counts [..., E].

    Returns:
        Values [...], at least 0.
    """
    shares = _shares(loads)
    return np.asarray(shares.std(axis=-1) * shares.shape[-1])


def max_violation(loads: ArrayLike) -> FloatArray:
    """Compute MaxVio: the largest load over the fair load, minus 1.

    Args:
        loads: counts [..., E].

    Returns:
        Values [...] in [0, N - 1].

    Source: Wang et al. 2024 (arXiv:2408.15664), section 4.1.
    """
    shares = _shares(loads)
    return np.asarray(shares.max(axis=-1) * shares.shape[-1] - 1)


def mutual_information(loads: ArrayLike) -> float:
    """Measure how much a routed copy's expert says about its text's domain.

    I(D; E) = sum over d, e of p(d, e) * log2(p(d, e) / (p(d) p(e))). A domain weighs as much as it has copies. Chance
    alone adds about (domains - 1) (experts - 1) / (2 ln 2 * copies) bits.

    Args:
        loads: counts [domains, E] of one layer.

    Returns:
        Bits, at most the entropy of the domains; 0 when domains use experts alike.
    """
    counts = np.asarray(loads, dtype=np.float64)
    joint = _shares(counts.reshape(-1)).reshape(counts.shape)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return max(0.0, float((joint * np.log2(ratio)).sum()))


def entropy_bits(counts: ArrayLike) -> float:
    """Compute the entropy of a distribution, H = - sum p log2 p.

    Args:
        counts: [n], at least one of them above 0.

    Returns:
        Bits, in [0, log2 n].
    """
    return float(_entropy(_shares(counts)) / np.log(2))


def _entropy(shares: FloatArray) -> FloatArray:
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=-1))


def _shares(loads: ArrayLike) -> FloatArray:
    counts = np.asarray(loads, dtype=np.float64)
    totals = counts.sum(axis=-1, keepdims=True)
    if not np.isfinite(counts).all() or (counts < 0).any() or (totals <= 0).any():
        raise ValueError("loads must be counts of at least 0, and some in every row; route at least one token first")
    return np.asarray(counts / totals)
