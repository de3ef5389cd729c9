"""The descent for beams too wide for one program's registers, in torch operations on the same means."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.descent import descend
from sortyard.ops.bucket_attention.triton_backend.problem import Problem


@torch.no_grad()
def descend_widely(
    queries: Float[Tensor, "S H n K"],
    key_means: Float[Tensor, "S H nodes K"],
    spreads: Float[Tensor, "S H nodes"] | None,
    problem: Problem,
) -> Int[Tensor, "S H C columns"]:
    """What each chunk chose, as the kernel writes it: near leaves, then table rows of the summaries; -1 is none.

    Args:
        queries: Queries.
        key_means: Mean keys of all nodes, leaves first.
        spreads: Mean squared distance of each node's keys to their mean; None to rank by mean keys alone.
        problem: The call.

    Returns:
        The choice.
    """
    plan, chunk = problem.plan, problem.spec.query_chunk
    starts = torch.arange(problem.chunks, device=queries.device) * chunk
    choice = descend(
        _mean_queries(queries, starts, problem),
        list(torch.split(key_means, list(plan.nodes), dim=-2)),
        near=plan.near,
        beam=max(plan.kept[1:], default=1),
        border=starts // plan.width if problem.causal else None,
        spreads=None if spreads is None else _lift(spreads, key_means, problem),
    )
    columns = [torch.where(choice.near < plan.nodes[0], choice.near, -1)]
    for height, far in enumerate(choice.far):
        if far is not None:
            columns.append(torch.where(far < plan.nodes[height], plan.first_row[height] + far, -1))
    return torch.cat(columns, -1).to(torch.int32)


def _lift(
    spreads: Float[Tensor, "S H nodes"], key_means: Float[Tensor, "S H nodes K"], problem: Problem
) -> list[Float[Tensor, "S H _nodes"]]:
    """Spreads by height, none below a millionth of that of all keys, which follows from the two topmost nodes."""
    lengths = problem.lengths[:, None].to(problem.wide)
    left = (problem.lengths[:, None] // 2) / lengths  # [S, 1]
    gap = (key_means[..., -2, :] - key_means[..., -1, :]).square().sum(-1)
    whole = left * spreads[..., -2] + (1 - left) * spreads[..., -1] + left * (1 - left) * gap
    least = (whole * 1e-6).clamp_min(torch.finfo(problem.wide).tiny)
    return list(torch.split(spreads.maximum(least[..., None]), list(problem.plan.nodes), dim=-1))


def _mean_queries(
    queries: Float[Tensor, "S H n K"], starts: Int[Tensor, " C"], problem: Problem
) -> Float[Tensor, "S H C K"]:
    """Mean of each chunk's real queries; in causal use of the `chunk` queries that end with its first."""
    S, H, n, K = problem.shape
    chunk = problem.spec.query_chunk
    first = starts - chunk + 1 if problem.causal else starts
    position = first[:, None] + torch.arange(chunk, device=queries.device)  # [C, chunk]
    valid = (position >= 0) & (position < problem.lengths[:, None, None])  # [S, C, chunk]
    rows = queries.index_select(-2, position.clamp(0, n - 1).flatten()).view(S, H, -1, chunk, K).to(problem.wide)
    total = rows.masked_fill(~valid[:, None, ..., None], 0.0).sum(-2)
    return total / valid.sum(-1).clamp_min(1)[:, None, :, None]
