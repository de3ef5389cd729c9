"""Scores by hand, constant predictions, and intervals."""

import numpy as np
import pytest

from sortyard.data.glue import TASKS
from sortyard.evaluation.metrics import METRICS, bootstrap_interval, headline_interval, score, wilson_interval


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "expected"),
    [
        ("sst2", [1, 0, 1, 1], [1, 0, 0, 1], {"accuracy": 0.75}),
        ("sst2", [[0.1, 0.9], [2.0, 1.0]], [1, 1], {"accuracy": 0.5}),
        ("mnli", [[0, 0, 5], [0, 9, 0]], [2, 1], {"accuracy": 1.0}),
        ("cola", [1, 1, 0, 0], [1, 0, 0, 0], {"matthews_correlation": 1 / 3**0.5}),
        ("mrpc", [1, 1, 0, 0], [1, 0, 0, 1], {"f1": 0.5, "accuracy": 0.5, "combined_score": 0.5}),
        ("stsb", [[1.0], [2.0], [9.0]], [1.0, 2.0, 3.0],
         {"spearman": 1.0, "pearson": 0.91766294, "combined_score": 0.95883147}),
    ],
)  # fmt: skip
def test_official_metrics(task: str, predictions: list[float], labels: list[float], expected: dict[str, float]) -> None:
    assert score(TASKS[task], predictions=predictions, labels=labels) == pytest.approx(expected)


@pytest.mark.parametrize("task", ["cola", "mrpc", "sst2", "stsb"])
def test_constant_predictions_score_instead_of_failing(task: str) -> None:
    scores = score(TASKS[task], predictions=np.zeros(4), labels=np.array([0, 1, 1, 1]))
    assert scores[TASKS[task].metrics[0]] == (0.25 if task == "sst2" else 0.0)
    headline_interval(TASKS[task], predictions=np.zeros(4), labels=np.array([0, 1, 1, 1]))


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [([], [], "no labels"), ([1, 0], [1], "one for each"), ([np.nan, 0.0], [1.0, 2.0], "NaN")],
)
def test_what_cannot_be_scored(predictions: list[float], labels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(TASKS["stsb"], predictions=predictions, labels=labels)


def test_logits_that_are_no_numbers_are_no_class() -> None:
    with pytest.raises(ValueError, match="NaN"):
        score(TASKS["sst2"], predictions=np.full((3, 2), np.nan), labels=np.array([0, 0, 1]))


def test_wilson_interval_against_published_values() -> None:
    interval = wilson_interval(81, total=263)  # Newcombe 1998, table I: 81/263, method 3
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, total=20).low == 0


def test_bootstrap_covers_the_score_and_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=80)
    noisy = labels + 0.5 * generator.normal(size=80)
    first, second = (bootstrap_interval("pearson", predictions=noisy, labels=labels, seed=3) for _ in range(2))
    assert first == second
    assert first.low < METRICS["pearson"](noisy, labels) < first.high
