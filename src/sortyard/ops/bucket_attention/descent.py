"""How a chunk of queries goes down a tree: keep the best nodes open, summarise the others where they are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.lsh_tree import take_rows

# Stands for "no node"; doubled at every level it still exceeds every node's number.
NO_NODE = 1 << 20

# Up to here one product with all nodes of a level is cheaper than gathering each chunk's candidates.
_SCORE_ALL_NODES = 512


@dataclass(frozen=True)
class Choice:
    """What each chunk decided; node numbers count within their height, NO_NODE or more is no node.

    Args:
        near: Leaves that are read exactly, in rising order.
        far: For each height, leaves first, the nodes that are summarised there; None where all stay open.
    """

    near: Int[Tensor, "S H C near"]
    far: list[Int[Tensor, "S H C _far"] | None]


@torch.no_grad()
def descend(
    chunk_means: Float[Tensor, "S H C K"],
    node_means: list[Float[Tensor, "S H _nodes K"]],
    *,
    near: int,
    beam: int,
    border: Int[Tensor, " C"] | None,
    spreads: list[Float[Tensor, "S H _nodes"]] | None = None,
) -> Choice:
    """Choose near leaves and summaries of every chunk.

    Args:
        chunk_means: The mean query that chooses for a chunk.
        node_means: Mean keys of each height's nodes, leaves first; node j's children are 2 j and 2 j + 1.
        near: Leaves to keep.
        beam: Nodes to keep at every height above the leaves.
        border: Leaves that a chunk may see (the others lie in its future); None if it sees all.
        spreads: For each height, the spread of each node's keys, whose logarithm adds to the mean key's logit; None
            to rank by that logit alone.

    Returns:
        The chosen nodes.
    """
    S, H, C, _ = chunk_means.shape
    top = len(node_means) - 1
    far: list[Tensor | None] = [None] * len(node_means)
    kept = torch.arange(0 if border is not None else 1, device=chunk_means.device).expand(S, H, C, -1)
    for height in range(top, -1, -1):
        means = node_means[height]
        candidates = torch.stack([2 * kept, 2 * kept + 1], -1).flatten(-2)
        if border is not None:
            past = border >> height
            # The node astride the border has one child wholly in the past where this bit is set.
            sibling = torch.where(past % 2 == 1, past - 1, NO_NODE)
            candidates = torch.cat([candidates, sibling[:, None].expand(S, H, C, 1)], -1)
        keep = min(beam if height else near, candidates.shape[-1])
        if keep == candidates.shape[-1]:
            kept = candidates
            continue
        scores = _scores(chunk_means, means, candidates)
        if spreads is not None:
            bonus = spreads[height].log()[:, :, None].expand(S, H, C, -1).gather(-1, candidates)
            scores = scores * means.shape[-1] ** -0.5 + bonus
        ranked = scores.argsort(dim=-1, descending=True, stable=True)
        kept = candidates.gather(-1, ranked[..., :keep]).sort(dim=-1).values
        far[height] = candidates.gather(-1, ranked[..., keep:])
    return Choice(kept, far)


def _scores(
    chunk_means: Float[Tensor, "S H C K"], means: Float[Tensor, "S H nodes K"], candidates: Int[Tensor, "S H C M"]
) -> Float[Tensor, "S H C M"]:
    nodes, K = means.shape[-2:]
    index = candidates.clamp_max(nodes - 1)
    if nodes <= _SCORE_ALL_NODES:
        scores = (chunk_means @ means.transpose(-1, -2)).gather(-1, index)
    else:
        rows = take_rows(means, index.flatten(-2)).view(*index.shape, K)
        scores = (rows @ chunk_means[..., None])[..., 0]
    return scores.masked_fill(candidates >= nodes, -torch.inf)
