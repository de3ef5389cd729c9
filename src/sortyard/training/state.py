"""Everything of a run's position that is not a tensor."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from sortyard.training.metrics import Window
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

    def note_evaluation(self, value: float, *, metric: str) -> bool:
        """Compare an evaluation with the best so far.

        Args:
            value: what the metric came to; NaN is never a gain.
            metric: its name; those ending in loss, perplexity or error are better when lower.

        Returns:
            Whether this is the new best; a tie is not.
        """
        sign = -1 if metric.endswith(LOWER_IS_BETTER) else 1
        is_gain = not math.isnan(value) and (self.best_value is None or sign * value > sign * self.best_value)
        if is_gain:
            self.best_value, self.best_step, self.stale_evaluations = value, self.step, 0
        else:
            self.stale_evaluations += 1
        return is_gain

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back without loss."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The state that `to_json` wrote."""
        return cls(**{**values, "window": Window.from_json(values["window"])})
