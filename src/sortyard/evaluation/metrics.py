"""The scores of a classification or regression task, under GLUE's names, with their uncertainty.

A prediction that is the same for every example is a result, not an error: it orders nothing, so its Matthews
correlation and its Pearson and Spearman correlations count as 0, and F1 is 0 when no example was called positive.
A model that has collapsed therefore scores 0 instead of stopping the evaluation or scoring NaN. The same holds for
a bootstrap resample that happens to be constant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sortyard.data.glue import Task

Values = NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was found."""

    low: float
    high: float
    level: float
    method: str


def accuracy(predictions: Values, labels: Values) -> float:
    """Return the share of examples whose prediction equals the label, 0 to 1."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: Values, labels: Values) -> float:
    """Return F1 of class 1, as GLUE scores MRPC and QQP; 0 to 1, and 0 where it has no positives to speak of."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0.0))


def f1_macro(predictions: Values, labels: Values) -> float:
    """Return the unweighted mean of every class's F1, 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def matthews_correlation(predictions: Values, labels: Values) -> float:
    """Return Matthews' correlation coefficient, -1 to 1; 0 for constant predictions."""
    from sklearn.metrics import matthews_corrcoef

    if is_constant(predictions) or is_constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Values, labels: Values) -> float:
    """Return Pearson's correlation, -1 to 1; 0 for constant predictions."""
    from scipy.stats import pearsonr

    if is_constant(predictions) or is_constant(labels):
        return 0.0
    return float(pearsonr(predictions, labels).statistic)


def spearman(predictions: Values, labels: Values) -> float:
    """Return Spearman's rank correlation, -1 to 1; 0 for constant predictions."""
    from scipy.stats import spearmanr

    if is_constant(predictions) or is_constant(labels):
        return 0.0
    return float(spearmanr(predictions, labels).statistic)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def score(task: Task, *, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Score predictions by the task's own metrics.

    Args:
        task: the task; its `metrics` say what is computed, in that order.
        predictions: logits [N, classes], class numbers [N], or a regression's values [N] or [N, 1].
        labels: class numbers [N], or the regression's values [N].

    Returns:
        One value for each metric and, for a task with several, their mean as `combined_score` (as GLUE averages them).

    Raises:
        ValueError: predictions and labels differ in number, there are none, or a value is not finite.
    """
    decided, truth = decide(task, predictions=predictions), np.asarray(labels)
    _check(decided, truth, task=task, given=np.asarray(predictions))
    scores = {name: METRICS[name](decided, truth) for name in task.metrics}
    if len(scores) > 1:
        scores["combined_score"] = sum(scores.values()) / len(scores)
    return scores


def decide(task: Task, *, predictions: ArrayLike) -> Values:
    """Turn logits into class numbers; leave class numbers and a regression's values as they are, flattened to [N]."""
    values: Values = np.asarray(predictions)
    if task.type == "regression":
        return values.reshape(len(values)).astype(np.float64)
    return values.argmax(axis=-1) if values.ndim == 2 else values


def wilson_interval(successes: int, *, total: int, level: float = 0.95) -> Interval:
    """Bound a proportion.

    Args:
        successes: how many of the trials succeeded, 0 to `total`.
        total: number of trials, at least 1.
        level: confidence, between 0 and 1.

    Returns:
        Wilson's score interval, which stays within 0 to 1 and is sound for small samples.

    Raises:
        ValueError: `successes` is not within 0 to `total`, or `total` is 0 (raised by scipy).

    Source: Wilson (1927), through `scipy.stats.binomtest`.
    """
    from scipy.stats import binomtest

    bounds = binomtest(successes, total).proportion_ci(confidence_level=level, method="wilson")
    return Interval(low=float(bounds.low), high=float(bounds.high), level=level, method="Wilson score")


def bootstrap_interval(
    metric: str, *, predictions: Values, labels: Values, level: float = 0.95, num_resamples: int = 500, seed: int = 0
) -> Interval:
    """Bound any metric by resampling the examples with replacement.

    Args:
        metric: a key of `METRICS`.
        predictions: decided predictions [N].
        labels: labels [N].
        level: confidence, between 0 and 1.
        num_resamples: resamples drawn, at least 1.
        seed: of the resampling.

    Returns:
        The percentile interval.

    Source: Efron (1979).
    """
    generator, function = np.random.default_rng(seed), METRICS[metric]
    draws = (generator.integers(len(labels), size=len(labels)) for _ in range(num_resamples))
    values = [function(predictions[draw], labels[draw]) for draw in draws]
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return Interval(low=float(low), high=float(high), level=level, method=f"bootstrap, {num_resamples} resamples")


def headline_interval(task: Task, *, predictions: ArrayLike, labels: ArrayLike) -> Interval:
    """Bound the task's headline metric: Wilson's interval for accuracy, the bootstrap for any other."""
    decided, truth = decide(task, predictions=predictions), np.asarray(labels)
    if task.metrics[0] == "accuracy":
        return wilson_interval(int((decided == truth).sum()), total=len(truth))
    return bootstrap_interval(task.metrics[0], predictions=decided, labels=truth)


def is_constant(values: Values) -> bool:
    """Return whether there is nothing to tell the examples apart by."""
    spread = float(np.ptp(values))
    return spread <= 1e-13 * float(np.abs(values).max())


def _check(predictions: Values, labels: Values, *, task: Task, given: Values) -> None:
    if len(labels) == 0:
        raise ValueError(f"{task.name}: there are no labels to score against; give a split that has labels")
    if predictions.shape != labels.shape:
        raise ValueError(f"{task.name}: {predictions.shape} predictions for {labels.shape} labels; give one for each")
    if not (np.isfinite(given).all() and np.isfinite(labels).all()):
        raise ValueError(f"{task.name}: a prediction or label is NaN or infinite; the training may have diverged")
