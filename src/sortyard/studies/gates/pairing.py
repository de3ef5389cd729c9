"""Differences within a seed: every arm of a seed has the same data in the same order and the same beginning."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """How much better the context arm is than another; positive is better, whatever the score.

    Attributes:
        mean: Mean over the seeds both have.
        low: Lower end of the interval; None with one seed.
        high: Upper end.
        seeds: Number of seeds.
        by_seed: Each seed's gain.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    by_seed: dict[str, float]

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    def record(self) -> dict[str, object]:
        """Return the gain as JSON values."""
        return asdict(self) | {"excludes_zero": self.excludes_zero}


def paired_gain(context: Mapping[str, float], other: Mapping[str, float], *, higher_is_better: bool) -> Gain | None:
    """Compare two arms seed by seed.

    Args:
        context: The context arm's score by seed.
        other: The other arm's.
        higher_is_better: Whether a high score is good; else the gain is the other's score minus the context's.

    Returns:
        The mean and its 95 % interval (Student's t over seeds, which takes the differences as normal), or None where
        no seed has both.
    """
    shared = [seed for seed in context if seed in other]
    if not shared:
        return None
    sign = 1 if higher_is_better else -1
    by_seed = {seed: sign * (context[seed] - other[seed]) for seed in shared}
    gains = list(by_seed.values())
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return Gain(mean, None, None, len(gains), by_seed)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return Gain(mean, mean - half, mean + half, len(gains), by_seed)
