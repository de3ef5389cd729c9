"""What a model must beat: the most frequent answer, and a bag of words."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortyard.data.examples import Examples
from sortyard.data.glue import Task
from sortyard.errors import InputError
from sortyard.evaluation.metrics import score

FIELD_SEPARATOR = "\n"


@dataclass(frozen=True)
class BaselineScore:
    """A baseline's scores on the split that the model was scored on."""

    name: str
    metrics: dict[str, float]


def baseline_scores(train: Examples, *, dev: Examples, seed: int = 0) -> list[BaselineScore]:
    """Fit both baselines on the examples a model was trained on, and score them on the split it is scored on.

    Args:
        train: the very examples the model was fine-tuned on.
        dev: the split to score; its task names the metrics.
        seed: of the solver.

    Returns:
        `majority class` (regression: `mean of the training values`), then `bag of words`.

    Raises:
        InputError: a split is empty or has no labels.
    """
    for split, examples in (("training", train), ("development", dev)):
        if not len(examples) or examples.labels is None:
            raise InputError(f"{dev.task.name}: baselines need labelled examples, and the {split} split has none")
    return [majority_baseline(train, dev=dev), bag_of_words_baseline(train, dev=dev, seed=seed)]


def majority_baseline(train: Examples, *, dev: Examples) -> BaselineScore:
    """Score the answer that is best without looking: the most frequent class, or the mean value."""
    labels = np.asarray(train.labels)
    regression = dev.task.type == "regression"
    answer = labels.mean() if regression else np.bincount(labels).argmax()
    guesses = np.full(len(dev.texts), answer)
    name = "mean of the training values" if regression else "majority class"
    return BaselineScore(name=name, metrics=score(dev.task, predictions=guesses, labels=np.asarray(dev.labels)))


def bag_of_words_baseline(train: Examples, *, dev: Examples, seed: int) -> BaselineScore:
    """Score TF-IDF of words and word pairs under logistic regression (regression tasks: ridge)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    labels = np.asarray(train.labels)
    if len(np.unique(labels)) == 1:  # nothing to fit: the one answer is all a bag of words could learn
        guesses: NDArray[Any] = np.full(len(dev.texts), labels[0])
    else:
        features = vectorizer.fit_transform(_documents(train))
        guesses = _fitted(dev.task, features, labels, seed=seed).predict(vectorizer.transform(_documents(dev)))
    return BaselineScore(
        name="bag of words", metrics=score(dev.task, predictions=guesses, labels=np.asarray(dev.labels))
    )


def _fitted(task: Task, features: Any, labels: NDArray[Any], *, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.type == "regression":
        return Ridge(alpha=1.0, random_state=seed).fit(features, labels)
    return LogisticRegression(C=10.0, max_iter=1000, random_state=seed).fit(features, labels)


def _documents(examples: Examples) -> list[str]:
    if examples.pairs is None:
        return list(examples.texts)
    return [FIELD_SEPARATOR.join(pair) for pair in zip(examples.texts, examples.pairs, strict=True)]
