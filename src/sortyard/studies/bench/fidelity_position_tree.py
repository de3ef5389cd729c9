"""The tree's control without content: the same descent over consecutive blocks of positions, by hand and densely."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops import BucketRelation, BucketSpec


@torch.no_grad()
def position_relation(
    q: Float[Tensor, "1 H T K"], k: Float[Tensor, "1 H T K"], spec: BucketSpec, *, marked: Bool[Tensor, " T"]
) -> BucketRelation:
    """The relation of a bidirectional tree whose node j of level l holds positions (j T) >> l to ((j + 1) T) >> l.

    Args:
        q: Queries of one sequence.
        k: Its keys.
        spec: Bucket size, query chunk, near buckets, beam and window are used.
        marked: Global tokens.

    Returns:
        Exact pairs and summaries, accounting for every key once.
    """
    H, T = q.shape[1:3]
    position = torch.arange(T)
    chunk_of = position // spec.query_chunk
    local = (position[:, None] - position).abs() <= spec.local_window
    levels = min((-(-T // spec.bucket_size) - 1).bit_length(), T.bit_length() - 1)
    inside, kept, far = _descend(q[0], k[0], spec, levels=levels)
    near = (kept.float() @ inside[-1].float() > 0)[:, chunk_of] | local | marked  # [H, T, T]
    members, counts = [near[:, :0]], [near[..., :0].long()]
    before = F.pad((~near).cumsum(-1), (1, 0))  # keys not exact before a position; nodes are stretches of positions
    for nodes, used in zip(inside, far, strict=True):
        if used.any():
            bounds = torch.arange(len(nodes) + 1) * T // len(nodes)
            hidden = before[..., bounds].diff(dim=-1)  # [H, T, nodes]
            members.append(nodes.expand(H, -1, -1))
            counts.append(hidden * used[:, chunk_of])
    return BucketRelation(near[None], torch.cat(members, 1)[None], torch.cat(counts, 2)[None])


def _descend(
    q: Float[Tensor, "H T K"], k: Float[Tensor, "H T K"], spec: BucketSpec, *, levels: int
) -> tuple[list[Bool[Tensor, "_nodes T"]], Bool[Tensor, "H C leaves"], list[Bool[Tensor, "H C _nodes"]]]:
    """Which positions lie in each level's nodes, the near leaves, and each level's summarised nodes, by chunk."""
    H, T, _ = q.shape
    means = torch.stack([chunk.mean(1) for chunk in torch.split(q, spec.query_chunk, 1)], 1)  # [H, C, K]
    opened: Int[Tensor, "H C nodes"] = torch.ones(H, means.shape[1], 1, dtype=torch.bool)
    inside, far = [], []
    for level in range(1, levels + 1):
        bounds = torch.arange(2**level + 1) * T >> level
        position = torch.arange(T)
        nodes = (position >= bounds[:-1, None]) & (position < bounds[1:, None])
        share = nodes.to(k) / bounds.diff()[:, None]
        candidates = opened.repeat_interleave(2, -1)
        scores = (means @ (share @ k).transpose(-1, -2)).masked_fill(~candidates, -torch.inf)
        keep = min(spec.beam if level < levels else spec.near_buckets, 2**level)
        best = torch.zeros_like(candidates).scatter_(-1, scores.topk(keep, -1).indices, True)
        opened = best & candidates
        inside.append(nodes)
        far.append(candidates & ~opened)
    return inside, opened, far
