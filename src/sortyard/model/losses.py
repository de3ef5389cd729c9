"""Losses of the heads, as sums over targets, so that micro-batches add up to the step's exact mean."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

IGNORED = -100


class TargetLoss(NamedTuple):
    """Sum of the losses of a batch's targets, and how many there are."""

    total: Float[Tensor, ""]
    num_targets: Tensor

    def weighted(
        self, aux_loss: Tensor | None, num_items_in_batch: int | Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss to differentiate, its task part and its balance part.

        Args:
            aux_loss: balance loss of this batch, or None.
            num_items_in_batch: targets of the whole optimizer step; None if this batch is the step. A step without any
                has a loss of zero.

        Returns:
            Their sum; the task loss (sum over targets / targets of the step); the balance loss, weighted by this
            batch's share of the step's targets.
        """
        own = self.num_targets.to(self.total.device)
        whole = own if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=own.device)
        whole = whole.clamp_min(1)
        task = self.total / whole
        if aux_loss is None:
            return task, task, None
        balance = aux_loss.to(task.device)  # the layers may be spread over several
        if num_items_in_batch is not None:
            balance = balance * (own.to(balance.dtype) / whole)
        return task + balance, task, balance


def cross_entropy(logits: Float[Tensor, "N V"], labels: Tensor) -> TargetLoss:
    """Cross-entropy in float32 or wider, summed over the labels that are not -100."""
    wide, labels = logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.to(logits.device)
    return TargetLoss(F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum())


def sequence_loss(logits: Float[Tensor, "B C"], labels: Tensor, problem_type: str) -> TargetLoss:
    """Loss of a sequence classifier.

    Args:
        logits: one row of scores for each sequence.
        labels: class numbers [B]; targets [B] or [B, C] for a regression; 0/1 rows [B, C] for several labels at once.
        problem_type: transformers' name of the three cases.

    Returns:
        The sum over targets: sequences, or each of their C targets, as transformers' Trainer counts them.

    Raises:
        ValueError: for another problem type.
    """
    wide, labels = logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.to(logits.device)
    count = torch.tensor(labels.numel(), device=labels.device)
    if problem_type == "single_label_classification":
        return cross_entropy(wide, labels.flatten())
    if problem_type == "regression":
        return TargetLoss(F.mse_loss(wide, labels.view_as(wide).to(wide.dtype), reduction="sum"), count)
    if problem_type == "multi_label_classification":
        return TargetLoss(F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype), reduction="sum"), count)
    raise ValueError(
        f"problem_type {problem_type!r} is unknown; use single_label_classification, regression or "
        "multi_label_classification"
    )
