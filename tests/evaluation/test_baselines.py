"""Baselines on words that tell the classes apart, and on words that do not."""

from pathlib import Path
from typing import Any

import pytest

from sortyard.data.glue import Task
from sortyard.errors import InputError
from sortyard.evaluation import baselines
from sortyard.evaluation.baselines import baseline_scores, kept_baselines
from tests.evaluation.tiny import make_examples

GOOD, BAD = "a fine film , warm", "a dull film , cold"


def test_bag_of_words_beats_the_majority_where_words_tell() -> None:
    train = make_examples("sst2", texts=[GOOD, BAD, GOOD, GOOD], labels=[1, 0, 1, 1])
    dev = make_examples("sst2", texts=["warm and fine", "cold and dull"], labels=[1, 0])
    majority, words = baseline_scores(train, dev=dev)
    assert (majority.name, majority.metrics) == ("majority class", {"accuracy": 0.5})
    assert (words.name, words.metrics) == ("bag of words", {"accuracy": 1.0})


def test_pairs_and_regression() -> None:
    texts, other = ["fine", "fine", "dull", "dull"], ["fine", "dull", "fine", "dull"]
    train = make_examples("stsb", texts=texts, labels=[5.0, 2.0, 2.0, 0.0], pairs=other)
    mean, words = baseline_scores(train, dev=train)
    assert mean.name == "mean of the training values"
    assert mean.metrics["pearson"] == 0
    assert words.metrics["pearson"] > 0.5


def test_one_class_only() -> None:
    train = make_examples("sst2", texts=[GOOD, GOOD], labels=[1, 1])
    dev = make_examples("sst2", texts=[GOOD, BAD], labels=[1, 0])
    assert [one.metrics["accuracy"] for one in baseline_scores(train, dev=dev)] == [0.5, 0.5]


def test_a_bag_of_words_is_fitted_on_no_more_than_some_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, fit = [], baselines._fitted

    def watched(task: Task, features: Any, *rest: Any, **named: Any) -> Any:
        fitted.append(features)
        return fit(task, features, *rest, **named)

    monkeypatch.setattr(baselines, "MAX_WORDS_EXAMPLES", 20)
    monkeypatch.setattr(baselines, "_fitted", watched)
    train = make_examples("sst2", texts=[f"{(GOOD, BAD)[i % 2]} {i}" for i in range(90)], labels=[1, 0] * 45)
    dev = make_examples("sst2", texts=["warm and fine", "cold and dull"], labels=[1, 0])
    for _ in range(2):
        majority, words = baseline_scores(train, dev=dev, seed=3)
    assert (majority.name, words.name) == ("majority class", "bag of words of 20 examples")
    assert words.metrics == {"accuracy": 1.0}
    first, again = fitted
    assert first.shape[0] == 20
    assert (first != again).nnz == 0


def test_what_was_found_is_kept_for_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = make_examples("sst2", texts=[GOOD, BAD, GOOD, GOOD], labels=[1, 0, 1, 1])
    dev = make_examples("sst2", texts=["warm and fine", "cold and dull"], labels=[1, 0])
    path = tmp_path / "baselines.json"
    scores = kept_baselines(path, train=train, dev=dev, seed=0)
    assert scores == baseline_scores(train, dev=dev, seed=0)
    asked = []
    monkeypatch.setattr(baselines, "baseline_scores", lambda *_, **named: asked.append(named) or [])
    assert kept_baselines(path, train=train, dev=dev, seed=0) == scores
    assert not asked
    assert kept_baselines(path, train=dev, dev=dev, seed=0) == []
    assert len(asked) == 1
    path.write_text("{")
    with pytest.raises(InputError, match=r"baselines\.json: is damaged"):
        kept_baselines(path, train=train, dev=dev, seed=0)


def test_empty_split_is_refused() -> None:
    train, empty = (make_examples("sst2", texts=texts, labels=[1] * len(texts)) for texts in (["fine"], []))
    with pytest.raises(InputError, match="development split has none"):
        baseline_scores(train, dev=empty)
