"""Distillation without labels: a model's hidden states follow a frozen teacher's on the same tokens."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sortyard.model.attention.layer import make_core
from sortyard.objectives.options import DistillationOptions
from sortyard.objectives.total import StepLoss

_READ = ("input_ids", "attention_mask", "cu_seqlens")


def frozen_dense_copy(model: Any) -> Any:
    """Copy a sortyard model's encoder, with dense attention where it has buckets; the parameters are the same.

    Args:
        model: a head of sortyard.model, or the encoder itself; it stays as it is.

    Returns:
        The encoder, in evaluation mode and without gradients; windows of sliding layers stay.
    """
    twin = copy.deepcopy(model.base_model)
    config = twin.config
    kinds = [config.attention_of(layer) for layer in range(config.num_hidden_layers)]
    config.attention = "dense"
    config.attention_layers = ["dense" if kind == "bucket" else kind for kind in kinds]
    for layer, block in enumerate(twin.encoder.layers):
        block.attention.core = make_core(config, layer)
    return twin.eval().requires_grad_(False)


@dataclass(frozen=True)
class Followed:
    """A model's and its teacher's states of the same tokens.

    Attributes:
        outputs: what the model returned.
        student: the states of each followed layer, real tokens only [N, D].
        teacher: the same of the teacher.
    """

    outputs: Any
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


class DistillationObjective:
    """Each token's squared error relative to its teacher's state (or 1 - cosine), and the experts' balance.

    loss = mean over tokens and followed layers of |s - t|^2 / |t|^2, for states s of the model and t of the teacher:
    the mean squared error over the teacher's mean square, taken token by token, so that micro-batches add up exactly
    and a few tokens with large states do not decide alone. Only the encoder learns; a head gets no gradient.

    Args:
        teacher: a frozen sortyard encoder of the model's width, on the model's device.
        options: the loss and the layers.
    """

    def __init__(self, teacher: nn.Module, *, options: DistillationOptions) -> None:
        self.teacher = teacher
        self.options = options

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of real tokens."""
        return int(batch["attention_mask"].sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets tokens."""
        followed = self.follow(model, batch)
        outputs = followed.outputs
        task = self.token_losses(followed).sum() / num_targets
        balance = None
        if outputs.aux_loss is not None:
            balance = outputs.aux_loss * (self.count_targets(batch) / num_targets)
        return StepLoss(
            total=task if balance is None else task + balance,
            task=task.detach(),
            balance=None if balance is None else balance.detach(),
            expert_loads=outputs.expert_loads,
            sparsity=outputs.sparsity or 0.0,
        )

    def follow(self, model: Any, batch: Mapping[str, Tensor]) -> Followed:
        """Run both encoders on a batch, whose labels are not read."""
        inputs = {name: batch[name] for name in _READ if name in batch}
        outputs = model.base_model(**inputs, output_hidden_states=True, output_statistics=True, return_dict=True)
        return self.beside_teacher(outputs, batch)

    def beside_teacher(self, outputs: Any, batch: Mapping[str, Tensor]) -> Followed:
        """Put the teacher's states beside those that a model returned for a batch."""
        inputs = {name: batch[name] for name in _READ if name in batch}
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            truth = self.teacher(**inputs, output_hidden_states=True, return_dict=True)
        student, teacher = (
            tuple(states[real] for states in self._followed_layers(found.hidden_states)) for found in (outputs, truth)
        )
        return Followed(outputs, student, teacher)

    def token_losses(self, followed: Followed) -> Float[Tensor, " N"]:
        """The loss of each real token, the mean over the followed layers."""
        measure = _one_minus_cosine if self.options.loss == "cosine" else _relative_square
        layers = [measure(s, t) for s, t in zip(followed.student, followed.teacher, strict=True)]
        return torch.stack(layers).mean(0)

    def _followed_layers(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return states[1:] if self.options.layers == "all" else states[-1:]


class DistilledMaskedLMObjective:
    """Masked language modelling, and the states beside the teacher's on the same masked text.

    The distillation's mean over a micro-batch's tokens counts by the micro-batch's share of the targets, as the balance
    loss does.

    Args:
        distillation: the teacher, and the weight `coef` of its part.
    """

    def __init__(self, distillation: DistillationObjective) -> None:
        self.distillation = distillation

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of labels other than -100."""
        return int((batch["labels"] != -100).sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets targets."""
        outputs: Any = model(**batch, num_items_in_batch=num_targets, output_hidden_states=True, return_dict=True)
        followed = self.distillation.beside_teacher(outputs, batch)
        share = self.distillation.options.coef * self.count_targets(batch) / num_targets
        following = self.distillation.token_losses(followed).mean() * share
        return StepLoss(
            total=outputs.loss + following,
            task=(outputs.task_loss + following).detach(),
            balance=None if outputs.aux_loss is None else outputs.aux_loss.detach(),
            expert_loads=outputs.expert_loads,
            sparsity=outputs.sparsity or 0.0,
        )


def _relative_square(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Squared error over the teacher's squared norm, in float32 or wider; [N]."""
    student, teacher = _wide(student), _wide(teacher)
    smallest = torch.finfo(teacher.dtype).tiny
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(smallest)


def _one_minus_cosine(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    return 1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
