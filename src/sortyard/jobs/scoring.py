"""A task and its examples as the evaluation takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from sortyard.data.examples import Examples
    from sortyard.data.glue import Task
    from sortyard.evaluation.baselines import BaselineScore
    from sortyard.evaluation.classification import EvaluationResult


_METRIC_NAMES = {"macro_f1": "f1_macro"}  # where the evaluation's name differs from the data's


@dataclass(frozen=True)
class ScoringTask:
    """A task with the metric that decides first."""

    name: str
    type: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, task: "Task") -> Self:
        """Reads it from the data's description of the task."""
        others = tuple(name for name in task.metrics if name != task.best_metric)
        metrics = tuple(_METRIC_NAMES.get(name, name) for name in (task.best_metric, *others))
        return cls(task.name, task.type, metrics, task.label_names)


def score_dev(
    model: Any,
    tokenizer: Any,
    examples: "Examples",
    *,
    task: ScoringTask,
    max_length: int,
    baselines: "Sequence[BaselineScore]" = (),
) -> "EvaluationResult":
    """Scores a model on a labelled split."""
    from sortyard.evaluation.classification import evaluate_examples

    return evaluate_examples(
        model, tokenizer=tokenizer, examples=examples, task=task, max_length=max_length, baselines=baselines
    )
