"""Whether one model is better than another on the very same examples."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortyard.evaluation.metrics import METRICS, Values

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class PairedDifference:
    """Second model minus first.

    Attributes:
        value: difference of the scores.
        low: lower end of the interval.
        high: upper end.
        level: its confidence.
        num_examples: examples that both answered.
        method: how it was computed.
    """

    value: float
    low: float
    high: float
    level: float
    num_examples: int
    method: str

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval tells the models apart."""
        return self.low > 0 or self.high < 0

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"excludes_zero": self.excludes_zero}


def paired_bootstrap(
    metric: str,
    *,
    first: Values,
    second: Values,
    labels: Values,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Bound the difference of two models' scores by resampling examples, both models on the same ones each time.

    What makes an example hard for both cancels, so the interval is narrower than the models' own ones suggest.

    Args:
        metric: a key of `METRICS`.
        first: decided predictions of the first model [N].
        second: those of the second.
        labels: labels [N].
        level: confidence, between 0 and 1.
        num_resamples: resamples drawn, at least 1.
        seed: of the resampling.

    Returns:
        The difference with its percentile interval.

    Raises:
        ValueError: the three differ in length, or are empty.

    Source: Efron and Tibshirani (1993), chapter 13.
    """
    if not len(first) == len(second) == len(labels) or not len(labels):
        raise ValueError(f"first, second and labels must be as many: {len(first)}, {len(second)}, {len(labels)}")
    generator = np.random.default_rng(seed)
    difference = _difference_of(metric, first=first, second=second, labels=labels)
    values = [difference(generator.integers(len(labels), size=len(labels))) for _ in range(num_resamples)]
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return PairedDifference(
        value=difference(np.arange(len(labels))),
        low=float(low),
        high=float(high),
        level=level,
        num_examples=len(labels),
        method=f"paired bootstrap, {num_resamples} resamples",
    )


def _difference_of(
    metric: str, *, first: Values, second: Values, labels: Values
) -> Callable[[NDArray[np.int64]], float]:
    """Return what computes the difference on some of the examples; a mean of theirs where the metric is one."""
    if metric == "accuracy":
        gains = (second == labels).astype(np.float64) - (first == labels)
        return lambda chosen: float(gains[chosen].mean())
    score = METRICS[metric]
    return lambda chosen: float(score(second[chosen], labels[chosen]) - score(first[chosen], labels[chosen]))
