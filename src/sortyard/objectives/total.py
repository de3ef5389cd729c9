"""The value every objective returns, and what an objective is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class StepLoss:
    """A micro-batch's part of a step's loss; the parts of all micro-batches add up to the loss of the step.

    Args:
        total: task and balance together, with its graph.
        task: sum over the micro-batch's targets divided by the step's number of targets, detached.
        balance: the experts' balance loss by the micro-batch's share of the targets, detached; None without experts.
        expert_loads: routed copies [layers, experts] in this micro-batch; None without experts.
        sparsity: share of query-key pairs not computed.
    """

    total: Tensor
    task: Tensor
    balance: Tensor | None
    expert_loads: Tensor | None
    sparsity: float


class Objective(Protocol):
    """What a step minimises."""

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of places in a micro-batch that carry a loss."""
        ...

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step.

        Args:
            model: a head whose forward takes labels and num_items_in_batch.
            batch: keyword arguments of the forward, labels included, on the model's device.
            num_targets: targets of the whole step, at least 1.
        """
        ...


def loss_of_head(model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
    """Call a head, which weighs its losses by the step's number of targets itself, and collect what it returns."""
    outputs: Any = model(**batch, num_items_in_batch=num_targets)
    return StepLoss(
        total=outputs.loss,
        task=outputs.task_loss.detach(),
        balance=None if outputs.aux_loss is None else outputs.aux_loss.detach(),
        expert_loads=outputs.expert_loads,
        sparsity=outputs.sparsity or 0.0,
    )
