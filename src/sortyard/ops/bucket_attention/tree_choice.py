"""The tree of a group of sequences and what its query chunks chose: all that is discrete about tree attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.descent import Choice, descend
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.node_means import mean_nodes, node_spreads, pair_sums
from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_tree import Leaves, build_leaves


@dataclass(frozen=True)
class TreeChoice:
    """A group's tree and choice.

    Args:
        leaves: Where every key sorts to.
        sizes: For each height, leaves first, how many keys a node holds.
        choice: The nodes that each chunk keeps and summarises.
        lengths: Real tokens of each sequence.
        chunk_starts: First position of each query chunk.
        own_from: First position that a causal chunk reads exactly whatever it chose; None if not causal.
    """

    leaves: Leaves
    sizes: list[Int[Tensor, "S _nodes"]]
    choice: Choice
    lengths: Int[Tensor, " S"]
    chunk_starts: Int[Tensor, " C"]
    own_from: Int[Tensor, " C"] | None


@torch.no_grad()
def choose_by_tree(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> TreeChoice:
    """Build a group's trees and let every chunk of queries choose.

    Args:
        q: Queries, in float32 or float64.
        k: Keys, in float32 or float64.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The choice.
    """
    return plan_tree(q, k, spec, group=group, causal=causal)[0]


@torch.no_grad()
def plan_tree(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> tuple[TreeChoice, Float[Tensor, "S H nodes K"]]:
    """The choice, and the mean keys of all nodes by which it was made, leaves first."""
    shape = group.shape
    assert isinstance(shape, TreeShape)
    n, chunk = q.shape[-2], spec.query_chunk
    lengths = group.real.sum(-1)
    starts = torch.arange(0, n, chunk, device=q.device)
    border: Tensor | None = None
    own_from: Tensor | None = None
    if causal:
        border = starts // shape.bucket_size
        leaves = _position_leaves(group, shape.bucket_size, heads=q.shape[1])
        num_leaves = (n - 1) // chunk * chunk // shape.bucket_size
        sizes = [lengths.new_full((len(lengths), num_leaves), shape.bucket_size)]
        heights, own_from = num_leaves.bit_length(), border * shape.bucket_size
        chosen_by = _past_means(q, chunk)
    else:
        is_even = group.is_full and n % 2**shape.levels == 0
        leaves = build_leaves(
            k,
            real=group.real,
            is_even=is_even,
            levels=shape.levels,
            power_steps=spec.power_steps,
            seed=spec.seed,
            queries=q if spec.split == "queries" else None,
        )
        bounds = torch.arange(2**shape.levels + 1, device=q.device) * lengths[:, None] >> shape.levels
        sizes, heights = [bounds.diff(dim=-1)], shape.levels
        chosen_by = _chunk_means(q, chunk, group)
    while len(sizes) < heights:
        sizes.append(pair_sums(sizes[-1][..., None])[..., 0])
    means = mean_nodes(k, leaves, sizes)
    by_height = list(torch.split(means, [size.shape[-1] for size in sizes], dim=-2))
    adds_spread = spec.score == "spread" and not causal
    spreads = node_spreads(k, by_height, leaves, sizes) if adds_spread else None
    choice = descend(chosen_by, by_height, near=shape.near, beam=shape.beam, border=border, spreads=spreads)
    return TreeChoice(leaves, sizes, choice, lengths, starts, own_from), means


def _position_leaves(group: Group, width: int, *, heads: int) -> Leaves:
    position = torch.arange(group.length, device=group.real.device)
    slots = torch.arange(-(-group.length // width) * width, device=group.real.device)
    S = len(group.lengths)
    order = slots.clamp_max(group.length - 1).expand(S, heads, -1)
    used = None if group.is_full and len(slots) == group.length else slots < group.real.sum(-1, keepdim=True)
    return Leaves(order, used, position.expand(S, heads, -1), width)


def _chunk_means(q: Float[Tensor, "S H n K"], chunk: int, group: Group) -> Float[Tensor, "S H C K"]:
    """Mean of each chunk's real queries."""
    missing = -q.shape[-2] % chunk
    if group.is_full and not missing:
        return torch.unflatten(q, -2, (-1, chunk)).mean(-2)
    weight = F.pad(group.real[:, None, :, None].to(q), (0, 0, 0, missing))
    total = torch.unflatten(F.pad(q, (0, 0, 0, missing)) * weight, -2, (-1, chunk)).sum(-2)
    return total / torch.unflatten(weight, -2, (-1, chunk)).sum(-2).clamp_min(1)


def _past_means(q: Float[Tensor, "S H n K"], chunk: int) -> Float[Tensor, "S H C K"]:
    """Mean of the `chunk` queries that end with each chunk's first, which every query of it may know."""
    chunks = -(-q.shape[-2] // chunk)
    padded = F.pad(q, (0, 0, chunk - 1, 0))
    total = F.pad(padded, (0, 0, 0, max(0, chunks * chunk - padded.shape[-2])))[..., : chunks * chunk, :]
    starts = torch.arange(chunks, device=q.device) * chunk
    return torch.unflatten(total, -2, (chunks, chunk)).sum(-2) / (starts + 1).clamp_max(chunk)[:, None]
