"""Baselines on words that tell the classes apart, and on words that do not."""

import pytest

from sortyard.errors import InputError
from sortyard.evaluation.baselines import baseline_scores
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


def test_empty_split_is_refused() -> None:
    train, empty = (make_examples("sst2", texts=texts, labels=[1] * len(texts)) for texts in (["fine"], []))
    with pytest.raises(InputError, match="development split has none"):
        baseline_scores(train, dev=empty)
