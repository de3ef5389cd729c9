"""Evaluations on the way: what they say about the best weights and about stopping early."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sortyard.errors import InputError
from sortyard.training.options import LoopOptions
from sortyard.training.recorder import Records
from sortyard.training.session import Session

Evaluate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Measures the model and keeps track of the best.

    Args:
        evaluate: returns the figures by name.
        best_metric: the figure that decides; None compares nothing.
        loop: its early_stopping_patience ends the run.
    """

    evaluate: Evaluate
    best_metric: str | None
    loop: LoopOptions

    def run(self, session: Session, *, recorder: Records) -> bool:
        """Evaluate after a step; true if it is the best so far."""
        state = session.state
        metrics = session.measure(self.evaluate)
        recorder.evaluation(metrics, step=state.step)
        if self.best_metric is None:
            return False
        if self.best_metric not in metrics:
            raise InputError(f"best_metric is {self.best_metric!r}, but the evaluation gives {', '.join(metrics)}")
        is_best = state.note_evaluation(metrics[self.best_metric], metric=self.best_metric)
        if self.loop.early_stopping_patience and state.stale_evaluations >= self.loop.early_stopping_patience:
            state.finished = state.finished or "early_stopping"
        return is_best
