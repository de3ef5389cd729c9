"""The paired bootstrap beside what is known of it."""

import numpy as np
import pytest

from sortyard.evaluation.metrics import METRICS
from sortyard.evaluation.paired import paired_bootstrap


def answers(*, wrong: slice, n: int = 400) -> np.ndarray:
    found = np.ones(n, dtype=np.int64)
    found[wrong] = 0
    return found


def test_a_model_against_itself_has_no_difference() -> None:
    same, labels = answers(wrong=slice(0, 100)), np.ones(400, dtype=np.int64)
    found = paired_bootstrap("accuracy", first=same, second=same, labels=labels)
    assert (found.value, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)


def test_interval_is_that_of_the_differing_answers() -> None:
    labels = np.ones(400, dtype=np.int64)
    found = paired_bootstrap(
        "accuracy", first=answers(wrong=slice(0, 120)), second=answers(wrong=slice(0, 80)), labels=labels
    )
    half = 1.96 * np.sqrt(0.1 * 0.9 / 400)  # 40 of 400 answers differ, all in one direction
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.1 - half, abs=0.006), pytest.approx(0.1 + half, abs=0.006))
    assert found.excludes_zero
    assert found.record()["excludes_zero"] is True


def test_order_turns_the_sign() -> None:
    labels = np.ones(50, dtype=np.int64)
    one, two = answers(wrong=slice(0, 9), n=50), answers(wrong=slice(30, 35), n=50)
    there = paired_bootstrap("accuracy", first=one, second=two, labels=labels)
    back = paired_bootstrap("accuracy", first=two, second=one, labels=labels)
    assert there.value == -back.value
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


@pytest.mark.parametrize("n", [0, 3])
def test_lengths_must_agree(n: int) -> None:
    with pytest.raises(ValueError, match="must be as many"):
        paired_bootstrap("accuracy", first=np.ones(n), second=np.ones(n), labels=np.ones(0))


def test_any_metric_is_the_metrics_own_difference() -> None:
    labels = np.arange(60) % 2
    one, two = np.zeros(60, dtype=np.int64), np.where(np.arange(60) < 40, labels, 0)
    found = paired_bootstrap("f1", first=one, second=two, labels=labels, num_resamples=20)
    assert found.value == pytest.approx(METRICS["f1"](two, labels) - METRICS["f1"](one, labels))
    assert found.low <= found.value <= found.high
