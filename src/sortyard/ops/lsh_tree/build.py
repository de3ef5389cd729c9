"""The balanced content tree: every level halves every node at the median of a projection."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MOST_LEVELS = 40


@dataclass(frozen=True)
class Leaves:
    """Where every key of a group of sequences sorts to: leaves of `width` slots each, some slots unused.

    Args:
        order: Position of the key in a slot; any position in unused slots.
        used: Which slots hold a key; None if all do.
        slot_of: Slot of the key at a position; anything at pads.
        width: Slots of a leaf.
    """

    order: Int[Tensor, "S H slots"]
    used: Bool[Tensor, "S slots"] | None
    slot_of: Int[Tensor, "S H n"]
    width: int


def split_directions(levels: int, *, head_dim: int, seed: int) -> Float[Tensor, "levels K"]:
    """One seeded start direction a level, shared by heads, nodes and sequences, whatever the depth."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_MOST_LEVELS, head_dim, generator=generator)[:levels]


@torch.no_grad()
def build_leaves(
    keys: Float[Tensor, "S H n K"],
    *,
    real: Bool[Tensor, "S n"],
    is_even: bool,
    levels: int,
    power_steps: int,
    seed: int,
) -> Leaves:
    """Sort the keys of each sequence and head into 2^levels leaves whose sizes differ by at most one.

    Args:
        keys: Keys in float32 or float64.
        real: Which places hold a key; they come first.
        is_even: Whether all sequences fill n and n divides by 2^levels, which saves the unused slots.
        levels: Halvings, at most log2 of the shortest length.
        power_steps: Power iterations that turn each node's start direction towards its largest spread.
        seed: Seed of the start directions.

    Returns:
        The sorted places.
    """
    S, H, n, K = keys.shape
    grid = _Grid(real.sum(-1), longest=n, levels=levels, is_even=is_even)
    directions = split_directions(levels, head_dim=K, seed=seed).to(keys)
    weight = real[:, None, :, None].to(keys)
    centre = (keys * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)
    order = grid.rank.clamp_min(0)[:, None].expand(S, H, -1)
    current = take_rows(keys - centre, order)
    if grid.used is not None:
        current = current * grid.used[:, None, :, None]
    for level in range(levels):
        projection = _project_on_spread(current, directions[level], grid=grid, level=level, power_steps=power_steps)
        moved = _sort_within_nodes(projection, grid=grid, level=level)
        order = order.gather(-1, moved)
        if level + 1 < levels:
            current = take_rows(current, moved)
            if grid.used is not None:
                current = current * grid.used[:, None, :, None]
    place = order if grid.used is None else torch.where(grid.used[:, None], order, n)
    slots = torch.arange(order.shape[-1], device=keys.device).expand_as(place)
    slot_of = order.new_zeros(S, H, n + 1).scatter_(-1, place, slots)[..., :n]
    return Leaves(order, grid.used, slot_of, grid.width)


def take_rows(x: Float[Tensor, "S H n K"], index: Int[Tensor, "S H m"]) -> Float[Tensor, "S H m K"]:
    """Rows of each sequence and head by index; one flat index_select is twice as fast as gather."""
    S, H, n, K = x.shape
    base = torch.arange(S * H, device=x.device).view(S, H, 1) * n
    return x.reshape(S * H * n, K).index_select(0, (index + base).flatten()).view(S, H, -1, K)


class _Grid:
    """Leaves as equal rows of slots: node j of level l holds the sorted ranks from (j n) >> l on."""

    def __init__(self, lengths: Int[Tensor, " S"], *, longest: int, levels: int, is_even: bool) -> None:
        count = 2**levels
        self.width = -(-longest // count)
        self.lengths = lengths[:, None]
        self.starts = torch.arange(count, device=lengths.device) * self.lengths >> levels  # [S, leaves]
        self.levels = levels
        ends = torch.cat([self.starts[:, 1:], self.lengths], -1)
        rank = self.starts[..., None] + torch.arange(self.width, device=lengths.device)
        used = rank < ends[..., None]
        self.rank = torch.where(used, rank, -1).flatten(1)  # [S, slots]
        self.used = None if is_even else used.flatten(1)

    def node_starts(self, level: int) -> Int[Tensor, "S nodes"]:
        return self.starts[:, :: 2 ** (self.levels - level)]


def _project_on_spread(
    keys: Float[Tensor, "S H slots K"], start: Float[Tensor, " K"], *, grid: _Grid, level: int, power_steps: int
) -> Float[Tensor, "S H nodes slots_per_node"]:
    """Projection of each key on its node's direction, less a constant of the node."""
    nodes = torch.unflatten(keys, -2, (2**level, -1))  # [S, H, nodes, slots, K]
    projection = nodes @ start
    used = None if grid.used is None else torch.unflatten(grid.used, -1, (2**level, -1))[:, None]
    size = nodes.shape[-2] if used is None else used.sum(-1, keepdim=True)
    for _ in range(power_steps):
        centred = projection - projection.sum(-1, keepdim=True) / size
        if used is not None:
            centred = centred * used
        # The centred projections add up to 0, so the node's mean key drops out of C^T C d.
        direction = F.normalize(centred[..., None, :] @ nodes, dim=-1)
        projection = (nodes @ direction.transpose(-1, -2))[..., 0]
    return projection


def _sort_within_nodes(
    projection: Float[Tensor, "S H nodes slots_per_node"], *, grid: _Grid, level: int
) -> Int[Tensor, "S H slots"]:
    """For every slot, the slot whose key moves there."""
    width = projection.shape[-1]
    offset = torch.arange(2**level, device=projection.device)[:, None] * width
    if grid.used is None:
        return (projection.argsort(dim=-1, stable=True) + offset).flatten(-2)
    used = torch.unflatten(grid.used, -1, (2**level, width))
    moved = projection.masked_fill(~used[:, None], torch.inf).argsort(dim=-1, stable=True)
    # Sorting brings the unused slots to a node's end, but each of its leaves has its own.
    place = torch.unflatten(grid.rank, -1, (2**level, width)) - grid.node_starts(level)[..., None]
    moved = moved.gather(-1, place.clamp_min(0)[:, None].expand_as(moved))
    return (moved + offset).flatten(-2)
