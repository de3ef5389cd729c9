"""Two-level selection: groups first, then experts within the chosen groups."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.expert_dispatch.routing import Routing

WEIGHTS = ("normalized", "straight_through")


def route(
    scores: Float[Tensor, "N E"],
    *,
    num_groups: int,
    num_groups_per_tok: int,
    num_experts_per_tok: int,
    selection_bias: Float[Tensor, " E"] | None = None,
    group_scores: Float[Tensor, "N G"] | None = None,
    weights: str = "normalized",
    mask: Bool[Tensor, " N"] | None = None,
    num_tokens: int | None = None,
) -> Routing:
    """Choose groups, then experts within them, for every token.

    A group's score is the sum of its best `num_experts_per_tok / num_groups_per_tok` expert scores, unless given.
    Given group scores multiply the scores of their experts in the weights, which is how their gate learns.

    Args:
        scores: positive gate scores; experts of a group are neighbours.
        num_groups: groups of equal size; 1 to E, a divisor of E.
        num_groups_per_tok: groups chosen for a token; 1 to num_groups.
        num_experts_per_tok: experts chosen for a token, equally many in each chosen group.
        selection_bias: added to the scores for selection only, never to the weights.
        group_scores: positive scores of the groups, where a gate of their own scores them.
        weights: "normalized" divides by the sum over the choice; "straight_through" is 1 with the score's gradient.
        mask: True at real tokens; all are real when left out. Others are routed nowhere.
        num_tokens: number of real tokens, where the caller knows it; else it is counted, which waits for the device.

    Returns:
        The routing.

    Raises:
        ValueError: if the counts do not fit each other.

    Source: group-limited selection as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2), which has no group gate.
    """
    per_group = _check_counts(
        scores.shape[1],
        num_groups=num_groups,
        num_groups_per_tok=num_groups_per_tok,
        num_experts_per_tok=num_experts_per_tok,
    )
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is unknown; choose one of {', '.join(WEIGHTS)}")
    experts = _select(
        scores.detach(),
        group_scores=group_scores,
        bias=selection_bias,
        num_groups=num_groups,
        num_groups_per_tok=num_groups_per_tok,
        per_group=per_group,
    )
    joint = scores.gather(1, experts)
    if group_scores is not None:
        joint = joint * group_scores.gather(1, experts // (scores.shape[1] // num_groups))
    if weights == "normalized":
        chosen = joint / (joint.sum(dim=1, keepdim=True) + torch.finfo(joint.dtype).tiny)
    else:
        chosen = 1 + joint - joint.detach()
    if mask is not None:
        experts = experts.masked_fill(~mask[:, None], scores.shape[1])
        chosen = chosen.masked_fill(~mask[:, None], 0.0)
    if num_tokens is None:
        num_tokens = len(scores) if mask is None else int(mask.sum())
    return Routing(experts, chosen, scores, _count(experts, scores.shape[1]), num_tokens)


def _check_counts(num_experts: int, *, num_groups: int, num_groups_per_tok: int, num_experts_per_tok: int) -> int:
    if not 1 <= num_groups <= num_experts or num_experts % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide the {num_experts} experts; choose a divisor")
    if not 1 <= num_groups_per_tok <= num_groups:
        raise ValueError(f"num_groups_per_tok={num_groups_per_tok} is out of range; choose 1 to {num_groups}")
    limit = num_groups_per_tok * (num_experts // num_groups)
    if not 1 <= num_experts_per_tok <= limit or num_experts_per_tok % num_groups_per_tok:
        raise ValueError(
            f"num_experts_per_tok={num_experts_per_tok} cannot be taken evenly from {num_groups_per_tok} groups of "
            f"{num_experts // num_groups} experts; choose a multiple of {num_groups_per_tok} up to {limit}"
        )
    return num_experts_per_tok // num_groups_per_tok


@torch.no_grad()
def _select(
    scores: Float[Tensor, "N E"],
    *,
    group_scores: Float[Tensor, "N G"] | None,
    bias: Float[Tensor, " E"] | None,
    num_groups: int,
    num_groups_per_tok: int,
    per_group: int,
) -> Int[Tensor, "N k"]:
    size = scores.shape[1] // num_groups
    grouped = (scores if bias is None else scores + bias).view(-1, num_groups, size)  # [N, G, E / G]
    if group_scores is None:
        of_groups = grouped.topk(per_group, dim=2).values.sum(dim=2)
    elif bias is None:
        of_groups = group_scores
    else:
        of_groups = group_scores + bias.view(num_groups, -1).mean(dim=1)
    groups = of_groups.topk(num_groups_per_tok, dim=1).indices  # [N, chosen]
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, size)).topk(per_group, dim=2).indices
    return (groups[:, :, None] * size + members).flatten(1)


def _count(experts: Int[Tensor, "N k"], num_experts: int) -> Float[Tensor, " E"]:
    # Not bincount: it waits for the device and breaks compiled graphs.
    chosen = experts.flatten()
    counts = torch.zeros(num_experts + 1, dtype=torch.float32, device=experts.device)
    return counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))[:num_experts]
