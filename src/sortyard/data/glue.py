"""The nine GLUE tasks as a table: columns, labels, metrics and the names their files go by."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Task:
    """One labelled task.

    Attributes:
        name: the name in recipes; also the configuration of the hub data set for GLUE.
        text_columns: accepted column names of the first text, the usual one first.
        pair_columns: the same for the second text; empty for single texts.
        label_columns: the same for the label.
        label_names: names by class number, in the order of the hub data set; empty for regression.
        metrics: names of the metrics reported; the first is the headline and chooses the best checkpoint.
        headerless: columns of the official TSV where it has no header line.
        label_range: lowest and highest regression target; None for classification.
    """

    name: str
    text_columns: tuple[str, ...]
    pair_columns: tuple[str, ...]
    label_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    headerless: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None

    @property
    def type(self) -> Literal["classification", "regression"]:
        """Regression where the label is a number on a scale."""
        return "regression" if self.label_range is not None else "classification"

    @property
    def is_pair(self) -> bool:
        """Whether an example is a pair of texts."""
        return bool(self.pair_columns)

    @property
    def num_labels(self) -> int:
        """Width of the model's head: the number of classes, 1 for regression."""
        return 1 if self.type == "regression" else len(self.label_names)


HUB_NAME = "nyu-mll/glue"

_LABEL = ("label", "labels")
_FIRST = ("sentence1", "#1 String", "premise")
_SECOND = ("sentence2", "#2 String", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola", ("sentence",), (), _LABEL, ("unacceptable", "acceptable"), ("matthews_correlation",),
            headerless=("source", "label", "star", "sentence"),
        ),
        Task("sst2", ("sentence",), (), _LABEL, ("negative", "positive"), ("accuracy",)),
        Task(
            "mrpc", _FIRST, _SECOND, (*_LABEL, "Quality"), ("not_equivalent", "equivalent"), ("f1", "accuracy")
        ),
        Task(
            "stsb", _FIRST, _SECOND, ("label", "score"), (), ("spearman", "pearson"), label_range=(0.0, 5.0),
        ),
        Task(
            "qqp", ("question1", *_FIRST), ("question2", *_SECOND), (*_LABEL, "is_duplicate"),
            ("not_duplicate", "duplicate"), ("f1", "accuracy"),
        ),
        Task(
            "mnli", ("premise", "sentence1"), ("hypothesis", "sentence2"), (*_LABEL, "gold_label"),
            ("entailment", "neutral", "contradiction"), ("accuracy",),
        ),
        Task(
            "qnli", ("question", "sentence1"), ("sentence", "sentence2"), _LABEL, _ENTAILMENT, ("accuracy",)
        ),
        Task("rte", _FIRST, _SECOND, _LABEL, _ENTAILMENT, ("accuracy",)),
        Task("wnli", _FIRST, _SECOND, _LABEL, ("not_entailment", "entailment"), ("accuracy",)),
    )
}  # fmt: skip

SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "test_matched"),
}
"""Words in a file's name that say which split it holds; also, in this order, the hub's split names to try."""
