"""What a model must beat: the most frequent answer, and a bag of words."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortyard.data.examples import Examples, digest_of
from sortyard.data.glue import Task
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.evaluation.metrics import score

FIELD_SEPARATOR = "\n"
# Enough for a yardstick: a million reviews would take hours and many gigabytes before the first step of training.
MAX_WORDS_EXAMPLES = 100_000


@dataclass(frozen=True)
class BaselineScore:
    """A baseline's scores on the split that the model was scored on."""

    name: str
    metrics: dict[str, float]


def kept_baselines(path: Path, *, train: Examples, dev: Examples, seed: int) -> list[BaselineScore]:
    """Do as `baseline_scores`, once for the same examples: what was found is read from a file afterwards.

    Args:
        path: the file; made anew where it is about other examples, another task or seed.
        train: as for `baseline_scores`.
        dev: as for `baseline_scores`.
        seed: as for `baseline_scores`.

    Raises:
        InputError: as for `baseline_scores`, or the file is damaged.
    """
    of = {"task": dev.task.name, "metrics": list(dev.task.metrics), "seed": seed, "examples": digest_of(train, dev)}
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["of"] == of:
                return [BaselineScore(**row) for row in found["baselines"]]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: is damaged ({error}); delete it, and the baselines are scored anew") from error
    scores = baseline_scores(train, dev=dev, seed=seed)
    content = {"of": of, "baselines": [asdict(one) for one in scores]}
    replace_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
    return scores


def baseline_scores(train: Examples, *, dev: Examples, seed: int = 0) -> list[BaselineScore]:
    """Fit both baselines on the examples a model was trained on, and score them on the split it is scored on.

    Args:
        train: the very examples the model was fine-tuned on.
        dev: the split to score; its task names the metrics.
        seed: of the solver, and of the draw where there are too many examples.

    Returns:
        `majority class` (regression: `mean of the training values`), then `bag of words`, whose name says so where it
        was fitted on `MAX_WORDS_EXAMPLES` of more examples.

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

    drawn = _drawn(train, seed=seed)
    name = "bag of words" if drawn is train else f"bag of words of {len(drawn):,} examples"
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    labels = np.asarray(drawn.labels)
    if len(np.unique(labels)) == 1:  # nothing to fit: the one answer is all a bag of words could learn
        guesses: NDArray[Any] = np.full(len(dev.texts), labels[0])
    else:
        features = vectorizer.fit_transform(_documents(drawn))
        guesses = _fitted(dev.task, features, labels, seed=seed).predict(vectorizer.transform(_documents(dev)))
    return BaselineScore(name=name, metrics=score(dev.task, predictions=guesses, labels=np.asarray(dev.labels)))


def _drawn(examples: Examples, *, seed: int) -> Examples:
    """Draws as many examples as a bag of words is fitted on, in their own order; all where there are no more."""
    if len(examples) <= MAX_WORDS_EXAMPLES:
        return examples
    order = np.random.default_rng(seed).permutation(len(examples))
    return examples.take(np.sort(order[:MAX_WORDS_EXAMPLES]))


def _fitted(task: Task, features: Any, labels: NDArray[Any], *, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.type == "regression":
        return Ridge(alpha=1.0, random_state=seed).fit(features, labels)
    return LogisticRegression(C=10.0, max_iter=1000, random_state=seed).fit(features, labels)


def _documents(examples: Examples) -> list[str]:
    if examples.pairs is None:
        return list(examples.texts)
    return [FIELD_SEPARATOR.join(pair) for pair in zip(examples.texts, examples.pairs, strict=True)]
