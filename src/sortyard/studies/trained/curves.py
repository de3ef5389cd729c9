"""Learning curves of runs: held-out loss against steps, arithmetic and time, and where one reaches another's end."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target, meta_model, parameter_counts
from sortyard.model.configuration import SortyardConfig
from sortyard.recipe import PretrainSection
from sortyard.runs.folder import RunFolder
from sortyard.studies.trained.runs import ArmRun

Json = dict[str, Any]
Axis = Literal["steps", "flops", "processor_seconds"]
AXES: tuple[Axis, ...] = ("steps", "flops", "processor_seconds")
_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Curve:
    """One run's held-out loss, evaluation by evaluation.

    Attributes:
        steps: Optimizer steps taken before.
        flops: Arithmetic until then, forward and backward; estimated from shapes.
        processor_seconds: Until then; those of the whole run, reading and evaluating included, spread evenly over
            its steps. Empty where a process ended unseen, so that nobody knows.
        losses: Held-out loss in nats.
        parameters: All of the model's.
        active_parameters: Those that a token meets.
        sparsity: Mean share of pairs left out of attention in training.
        seconds: By the clock, of the whole run.
    """

    steps: list[float]
    flops: list[float]
    processor_seconds: list[float]
    losses: list[float]
    parameters: int
    active_parameters: int
    sparsity: float
    seconds: float

    def record(self) -> Json:
        """Return it as JSON values."""
        return asdict(self)

    def axis(self, name: Axis) -> list[float]:
        """One of the three costs."""
        found: list[float] = getattr(self, name)
        return found


def read_curve(run: ArmRun, *, section: PretrainSection) -> Curve:
    """Read a finished pretraining run.

    Args:
        run: The run.
        section: What its recipe says of pretraining.
    """
    length, loop = section.data.sequence_length, section.loop
    masked_share = section.masking.probability if section.objective == "masked_lm" else 1.0
    folder = RunFolder.open(run.folder)
    evals = {int(line["step"]): float(line["loss"]) for line in folder.read_metrics("eval")}
    train = list(folder.read_metrics("train"))
    config = SortyardConfig.from_pretrained(folder.model)
    model = meta_model(config, head="causal_lm" if config.causal else "masked_lm")
    token = forward_flops_per_token(model, length=length) + masked_share * head_flops_per_target(model)
    flops_per_step = _FORWARD_AND_BACKWARD * token * loop.micro_batch_size * loop.accumulation_steps * length
    steps, counts = sorted(step for step in evals if step), parameter_counts(model)
    last, spent = max(steps), run.spent
    return Curve(
        steps=[float(step) for step in steps],
        flops=[flops_per_step * step for step in steps],
        processor_seconds=[] if spent.get("lost") else [spent["processor_seconds"] * step / last for step in steps],
        losses=[evals[step] for step in steps],
        parameters=counts.total,
        active_parameters=counts.active,
        sparsity=float(np.mean([line.get("sparsity") or 0.0 for line in train])),
        seconds=float(spent["seconds"]),
    )


def reached(costs: Sequence[float], losses: Sequence[float], *, target: float) -> float | None:
    """The cost at which a loss is first reached, between evaluations on a straight line.

    Args:
        costs: Rising.
        losses: At those costs.
        target: The loss to reach.

    Returns:
        The cost; None where it is never reached. A curve that begins below the target has its first cost.
    """
    for place, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        if loss <= target:
            if not place:
                return cost
            before, above = costs[place - 1], losses[place - 1]
            return before + (cost - before) * (above - target) / (above - loss)
    return None


def processor_seconds(curves: Iterable[Curve]) -> float | None:
    """The median of what whole runs took; None where it is known of none."""
    known = [curve.processor_seconds[-1] for curve in curves if curve.processor_seconds]
    return statistics.median(known) if known else None


def loss_at(costs: Sequence[float], losses: Sequence[float], *, cost: float) -> float | None:
    """The loss after a cost, between evaluations on a straight line; None outside of what was evaluated."""
    if not costs[0] <= cost <= costs[-1]:
        return None
    return float(np.interp(cost, costs, losses))
