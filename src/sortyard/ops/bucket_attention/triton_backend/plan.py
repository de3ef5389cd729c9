"""What a group's kernels know before they run: nodes, candidates and columns by height. Host arithmetic only."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.lsh_tree import split_directions


@dataclass(frozen=True)
class Plan:
    """A tree's static sizes; tuples run over heights, leaves first, the root left out.

    Args:
        levels: Halvings of the content tree; unused by the position tree.
        width: Most keys of a leaf.
        nodes: Nodes of a height.
        first_row: Row of a height's first node in the table of means.
        candidates: Nodes that a chunk scores at a height.
        kept: How many of them stay open.
        first_far: Column of a height's first summary.
    """

    levels: int
    width: int
    nodes: tuple[int, ...]
    first_row: tuple[int, ...]
    candidates: tuple[int, ...]
    kept: tuple[int, ...]
    first_far: tuple[int, ...]

    @property
    def heights(self) -> int:
        """Heights below the root."""
        return len(self.nodes)

    @property
    def num_nodes(self) -> int:
        """Rows of the table of means."""
        return sum(self.nodes)

    @property
    def near(self) -> int:
        """Leaves that a chunk reads exactly."""
        return self.kept[0]

    @property
    def far(self) -> int:
        """Summaries that a chunk may read."""
        return sum(self.candidates) - sum(self.kept)


@lru_cache(maxsize=1024)
def make_plan(shape: TreeShape, length: int, *, query_chunk: int, causal: bool) -> Plan:
    """The static sizes of a group whose longest sequence has `length` tokens.

    Args:
        shape: The tree's shape.
        length: Tokens of the longest sequence.
        query_chunk: Queries that choose together.
        causal: Whether leaves are blocks of positions.

    Returns:
        The plan.
    """
    if causal:
        leaves = (length - 1) // query_chunk * query_chunk // shape.bucket_size
        heights, width = leaves.bit_length(), shape.bucket_size
    else:
        leaves, heights = 2**shape.levels, shape.levels
        width = -(-length // leaves)
    nodes = tuple(leaves >> height for height in range(heights))
    open_nodes = 0 if causal else 1
    candidates, kept = [], []
    for height in range(heights - 1, -1, -1):
        candidates.append(2 * open_nodes + (1 if causal else 0))
        open_nodes = min(shape.beam if height else shape.near, candidates[-1])
        kept.append(open_nodes)
    candidates.reverse()
    kept.reverse()
    far = tuple(all_ - open_ for all_, open_ in zip(candidates, kept, strict=True))
    return Plan(shape.levels, width, nodes, _running(nodes), tuple(candidates), tuple(kept), _running(far))


def _running(counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(counts[:at]) for at in range(len(counts)))


# The next two live as long as the process: a copy from the host a call would cost more than some kernels.
@lru_cache(maxsize=256)
def plan_table(plan: Plan, device: torch.device) -> tuple[Int[Tensor, "heights 5"], Int[Tensor, " far"]]:
    """The plan for kernels: a row (first row, nodes, candidates, kept, first far) a height; heights of far columns."""
    rows = zip(plan.first_row, plan.nodes, plan.candidates, plan.kept, plan.first_far, strict=True)
    heights = [
        height
        for height, (all_, kept) in enumerate(zip(plan.candidates, plan.kept, strict=True))
        for _ in range(all_ - kept)
    ]
    table = torch.tensor(list(rows), dtype=torch.int32, device=device)
    return table, torch.tensor(heights, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def start_directions(
    levels: int, *, head_dim: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "levels K"]:
    """The levels' start directions on a device."""
    return split_directions(levels, head_dim=head_dim, seed=seed).to(device=device, dtype=dtype)
