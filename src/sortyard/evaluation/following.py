"""How closely a model's token states follow a teacher's, and how evenly its experts are used meanwhile."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sortyard.evaluation.routing import utilisation
from sortyard.objectives.distillation import DistillationObjective


@dataclass(frozen=True)
class FollowingScore:
    """Figures over every real token of the batches.

    Attributes:
        loss: mean of the objective's token losses.
        relative_error: norm of the difference of the last layer's states over the norm of the teacher's.
        token_cosine: mean cosine of a token's two states.
        utilisation: effective share of experts, of the least evenly used layer; None without experts.
        num_tokens: real tokens.
    """

    loss: float
    relative_error: float
    token_cosine: float
    utilisation: float | None
    num_tokens: int


@torch.no_grad()
def following_score(
    model: Any, *, objective: DistillationObjective, batches: Iterable[Mapping[str, Tensor]]
) -> FollowingScore:
    """Compare a model with its teacher; the model is put in evaluation mode for the duration.

    Args:
        model: a sortyard model, on its teacher's device.
        objective: holds the teacher.
        batches: dictionaries with `input_ids`, `attention_mask` and, for packed rows, `cu_seqlens`; one at least.

    Returns:
        The figures; sums are kept in float64.
    """
    was_training = model.training
    model.eval()
    sums, loads = torch.zeros(5, dtype=torch.float64), None
    try:
        for batch in batches:
            followed = objective.follow(model, {name: value.to(model.device) for name, value in batch.items()})
            student, teacher = (states[-1].double() for states in (followed.student, followed.teacher))
            losses = objective.token_losses(followed).double()
            cosines = torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
            squares = ((student - teacher).square().sum(), teacher.square().sum())
            count = torch.tensor(len(losses), dtype=torch.float64)
            sums += torch.stack([losses.sum().cpu(), *(s.cpu() for s in squares), cosines.sum().cpu(), count])
            if (found := followed.outputs.expert_loads) is not None:
                loads = found.double().cpu() if loads is None else loads + found.double().cpu()
    finally:
        model.train(was_training)
    loss, error, norm, cosine, tokens = sums.tolist()
    if not tokens:
        raise ValueError("the held-out batches hold no tokens; give more text")
    return FollowingScore(
        loss=loss / tokens,
        relative_error=(error / norm) ** 0.5,
        token_cosine=cosine / tokens,
        utilisation=None if loads is None else float(utilisation(loads.numpy()).min()),
        num_tokens=int(tokens),
    )
