"""A model's predictions on a labelled split: scores, confusion matrix, and every example's answer on disk."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortyard.data.examples import Examples
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.evaluation.baselines import BaselineScore
from sortyard.evaluation.batching import TextOrPair, position_limit, sequence_logits
from sortyard.evaluation.metrics import Interval, decide, headline_interval, score


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one split, with every prediction."""

    task: str
    type: str
    num_examples: int
    metrics: dict[str, float]
    main_metric: str
    interval: Interval
    label_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...] | None  # [label][prediction] counts; None for a regression
    predictions: tuple[dict[str, Any], ...]
    seconds: float
    baselines: tuple[BaselineScore, ...] = ()

    @property
    def main_score(self) -> float:
        """The value of the headline metric."""
        return self.metrics[self.main_metric]

    def write(self, folder: Path, *, name: str) -> Path:
        """Write `NAME.json` and `NAME-predictions.jsonl` into a folder, and return the former."""
        folder.mkdir(parents=True, exist_ok=True)
        summary = {key: value for key, value in asdict(self).items() if key != "predictions"}
        path = folder / f"{name}.json"
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.predictions)
        replace_bytes(folder / f"{name}-predictions.jsonl", lines.encode())
        replace_bytes(path, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
        return path


def evaluate_examples(
    model: Any,
    *,
    tokenizer: Any,
    examples: Examples,
    batch_size: int = 32,
    max_length: int | None = None,
    baselines: Sequence[BaselineScore] = (),
    columns: Sequence[int] | None = None,
) -> EvaluationResult:
    """Score a sequence-classification model on labelled examples.

    The model is put in evaluation mode for the duration and then back in the mode it was in.

    Args:
        model: a Hugging Face sequence-classification (or one-output regression) model.
        tokenizer: its tokenizer.
        examples: the split, with labels; its task names the metrics and the classes.
        batch_size: sequences a forward at most, at least 1.
        max_length: tokens a sequence is cut to; None takes what the model can hold.
        baselines: scores on the same split to store beside the model's.
        columns: which of the model's outputs stands for each of the task's classes; None = they stand in that order.

    Returns:
        The scores, the confusion matrix (labels down, predictions across) and one row for each example.

    Raises:
        InputError: there are no examples, or they have no labels.
        ValueError: the model gave a value that is not finite.
    """
    if not len(examples) or examples.labels is None:
        raise InputError(f"{examples.task.name}: the split has no labelled examples; give one that has, such as dev")
    started, was_training = time.perf_counter(), model.training
    limit = max_length if max_length is not None else position_limit(model, tokenizer=tokenizer)
    model.eval()
    try:
        stream = sequence_logits(
            model, tokenizer=tokenizer, inputs=as_inputs(examples), batch_size=batch_size, max_length=limit
        )
        rows = [logits for _, logits in stream]
    finally:
        model.train(was_training)
    logits = np.stack(rows)
    logits = logits if columns is None else logits[:, list(columns)]
    return _result(logits, examples=examples, seconds=time.perf_counter() - started, baselines=baselines)


def as_inputs(examples: Examples) -> Sequence[TextOrPair]:
    """Return the examples as texts, or as pairs of texts where they have pairs."""
    if examples.pairs is None:
        return examples.texts
    return list(zip(examples.texts, examples.pairs, strict=True))


def confusion_counts(
    predictions: NDArray[Any], *, labels: NDArray[Any], num_classes: int
) -> tuple[tuple[int, ...], ...]:
    """Count how often each label [rows] met each prediction [columns]."""
    counts = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(counts, (labels, predictions), 1)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _result(
    logits: NDArray[np.float32], *, examples: Examples, seconds: float, baselines: Sequence[BaselineScore]
) -> EvaluationResult:
    task, labels = examples.task, np.asarray(examples.labels)
    decided, regression = decide(task, predictions=logits), task.type == "regression"
    return EvaluationResult(
        task=task.name,
        type=task.type,
        num_examples=len(labels),
        metrics=score(task, predictions=logits, labels=labels),
        main_metric=task.metrics[0],
        interval=headline_interval(task, predictions=logits, labels=labels),
        label_names=task.label_names,
        confusion=None if regression else confusion_counts(decided, labels=labels, num_classes=logits.shape[1]),
        predictions=tuple(_prediction_rows(logits, decided=decided, examples=examples)),
        seconds=seconds,
        baselines=tuple(baselines),
    )


def _prediction_rows(logits: NDArray[np.float32], *, decided: NDArray[Any], examples: Examples) -> list[dict[str, Any]]:
    """One dictionary an example: its text(s), label, prediction and, for classes, the softmax score."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    rows: list[dict[str, Any]] = []
    labels, names = np.asarray(examples.labels), examples.task.label_names
    for i, (text, label) in enumerate(zip(examples.texts, labels, strict=True)):
        row: dict[str, Any] = {"index": i, "place": examples.places[i], "text": text}
        if examples.pairs is not None:
            row["text_pair"] = examples.pairs[i]
        if not names:
            row |= {"label": float(label), "prediction": float(decided[i])}
        else:
            wanted, given = int(label), int(decided[i])
            row |= {
                "label": names[wanted],
                "prediction": names[given],
                "correct": wanted == given,
                "score": float(scores[i]),
            }
        rows.append(row | {"logits": [float(value) for value in logits[i]]})
    return rows
