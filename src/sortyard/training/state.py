"""Everything of a run's position that is not a tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sortyard.errors import InputError
from sortyard.training.metrics import Window
from sortyard.training.options import LoopOptions
from sortyard.training.step import StepResult

LOWER_IS_BETTER = ("loss", "perplexity", "error")


@dataclass
class TrainState:
    """Where a run stands.

    The position in the data needs no field of its own: batches and dropout are functions of the seed and the step.

    Args:
        step: finished steps.
        tokens: real tokens so far.
        seconds: training time so far, without evaluation and saving.
        bad_steps: bad steps in a row so far.
        best_value: best evaluation so far; None before the first.
        best_step: finished steps at the best evaluation; 0 before the first.
        stale_evaluations: evaluations since the best one.
        is_pending: whether the last step is still to be evaluated and recorded.
        finished: why the run is over ("steps", "max_seconds" or "early_stopping"); empty while it goes on.
        window: sums since the last line of metrics.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    best_value: float | None = None
    best_step: int = 0
    stale_evaluations: int = 0
    is_pending: bool = False
    finished: str = ""
    window: Window = field(default_factory=Window)

    def advance(self, result: StepResult, *, seconds: float) -> None:
        """Count a finished step.

        Args:
            result: what it did.
            seconds: how long it took, fetching included.
        """
        self.step += 1
        self.tokens += result.num_tokens
        self.seconds += seconds
        self.window.add(result, seconds=seconds)
        if result.outcome == "bad":
            self.bad_steps += 1
        elif result.outcome == "updated":
            self.bad_steps = 0

    def note_evaluation(self, metrics: Mapping[str, float], best_metric: str, *, loop: LoopOptions) -> bool:
        """Compare an evaluation with the best so far, and finish the run where its patience is over.

        Args:
            metrics: what the evaluation came to; what is not finite is never a gain.
            best_metric: which decides; one whose name ends in loss, perplexity or error is better when lower.
            loop: its early_stopping_patience.

        Returns:
            Whether this is the new best; a tie is not.

        Raises:
            InputError: there is no such figure.
        """
        if best_metric not in metrics:
            raise InputError(f"best_metric is {best_metric!r}, but the evaluation gives {', '.join(metrics)}")
        value, sign = metrics[best_metric], -1 if best_metric.endswith(LOWER_IS_BETTER) else 1
        is_gain = math.isfinite(value) and (self.best_value is None or sign * value > sign * self.best_value)
        if is_gain:
            self.best_value, self.best_step, self.stale_evaluations = value, self.step, 0
        else:
            self.stale_evaluations += 1
        if self.is_out_of_patience(loop):
            self.finished = self.finished or "early_stopping"
        return is_gain

    def is_out_of_patience(self, loop: LoopOptions) -> bool:
        """Whether as many evaluations as its early_stopping_patience were no gain."""
        return 0 < loop.early_stopping_patience <= self.stale_evaluations

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The state of what `asdict` made of it."""
        return cls(**{**values, "window": Window(**values["window"])})
