"""What the gate study asks of a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sortyard.data.collate import Batch
from sortyard.objectives.total import Objective
from sortyard.studies.gates.arms import Trainee

Json = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What all arms of one seed share.

    Attributes:
        step: Returns the micro-batches of a step, counted from 0.
        evaluate: Scores a model on what it was not trained on: "score", and where there are several sources
            "by_source"; with experts "mutual_information" of expert and mode or source, and "utilisation", by layer.
    """

    step: Callable[[int], Sequence[Batch]]
    evaluate: Callable[[Any], Json]


class GateTask(Protocol):
    """A task that every arm is trained on."""

    @property
    def name(self) -> str:
        """Its name on the command line and in results."""

    @property
    def data(self) -> str:
        """Digest of what is read; arms are never compared over different data."""

    @property
    def trainee(self) -> Trainee:
        """The model and its training."""

    @property
    def objective(self) -> Objective:
        """What is minimised."""

    @property
    def evaluation_steps(self) -> float:
        """Training steps that take about as long as one evaluation."""

    def material(self, seed: int) -> Material:
        """Return a seed's batches and evaluation."""
