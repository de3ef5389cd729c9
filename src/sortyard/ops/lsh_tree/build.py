"""The balanced content tree: every level halves every node at the median of a projection."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MOST_LEVELS = 40

# Queries that the moments are taken over.
_MOST_SAMPLES = 256

# Heads are independent: few enough at a time that their keys stay in the processor's cache and memory stays bounded.
_ELEMENTS_AT_A_TIME = 1 << 21


@dataclass(frozen=True)
class Leaves:
    """Where every key of a group of sequences sorts to: leaves of `width` slots each, some slots unused.

    Args:
        order: Position of the key in a slot, rising within a leaf; any position in unused slots.
        used: Which slots hold a key, the first ones of each leaf; None if all do.
        slot_of: Slot of the key at a position; any slot at pads.
        width: Slots of a leaf.
    """

    order: Int[Tensor, "S H slots"]
    used: Bool[Tensor, "S slots"] | None
    slot_of: Int[Tensor, "S H n"]
    width: int


def split_directions(levels: int, *, head_dim: int, seed: int) -> Float[Tensor, "levels K"]:
    """One seeded start direction a level, shared by heads, nodes and sequences, whatever the depth."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(_MOST_LEVELS, head_dim, generator=generator, device="cpu", dtype=torch.float32)
    return drawn[:levels]


@torch.no_grad()
def build_leaves(
    keys: Float[Tensor, "S H n K"],
    *,
    real: Bool[Tensor, "S n"],
    is_even: bool,
    levels: int,
    power_steps: int,
    seed: int,
    queries: Float[Tensor, "S H n K"] | None = None,
) -> Leaves:
    """Sort the keys of each sequence and head into 2^levels leaves whose sizes differ by at most one.

    Args:
        keys: Keys in float32 or float64.
        real: Which places hold a key; they come first.
        is_even: Whether all sequences fill n and n divides by 2^levels, which saves the unused slots.
        levels: Halvings, at most log2 of the shortest length.
        power_steps: Power iterations that turn each node's start direction towards its largest spread.
        seed: Seed of the start directions.
        queries: Queries whose moments weigh each power step; None for the keys' own spread.

    Returns:
        The sorted places.
    """
    S, H, n, K = keys.shape
    grid = _Grid(real.sum(-1), longest=n, levels=levels, is_even=is_even)
    directions = split_directions(levels, head_dim=K, seed=seed).to(keys)
    at_a_time = max(1, _ELEMENTS_AT_A_TIME // max(1, S * n * K))
    moments = None if queries is None else _moments(queries, grid.lengths)
    parts = []
    for first in range(0, H, at_a_time):
        heads = slice(first, first + at_a_time)
        turn = _Turn(power_steps, None if moments is None else moments[:, heads])
        parts.append(_halve(keys[:, heads], directions, grid=grid, turn=turn))
    order = torch.cat(parts, 1)
    used = grid.used(levels)
    place = order if used is None else torch.where(used.flatten(1)[:, None], order, n)
    slots = torch.arange(order.shape[-1], device=keys.device).expand_as(place)
    slot_of = order.new_zeros(S, H, n + 1).scatter_(-1, place, slots)[..., :n]
    return Leaves(order, None if used is None else used.flatten(1), slot_of, grid.width)


def take_rows(
    x: Float[Tensor, "S H n K"], index: Int[Tensor, "S H m"], *, out: Float[Tensor, "S H m K"] | None = None
) -> Float[Tensor, "S H m K"]:
    """Rows of each sequence and head by index; one flat index_select is twice as fast as gather."""
    S, H, n, K = x.shape
    base = torch.arange(S * H, device=x.device).view(S, H, 1) * n
    flat = None if out is None else out.view(-1, K)
    return torch.index_select(x.reshape(S * H * n, K), 0, (index + base).flatten(), out=flat).view(S, H, -1, K)


class _Grid:
    """Nodes as equal rows of slots, of which the first ones hold a key."""

    def __init__(self, lengths: Int[Tensor, " S"], *, longest: int, levels: int, is_even: bool) -> None:
        self.lengths, self.levels, self.is_even = lengths[:, None], levels, is_even
        self.width = -(-longest // 2**levels)
        self.slots = self.width << levels

    def sizes(self, level: int) -> Int[Tensor, "S nodes"]:
        """Keys of each node: ((j + 1) n >> l) - (j n >> l) in node j of level l."""
        bounds = torch.arange(2**level + 1, device=self.lengths.device) * self.lengths >> level
        return bounds.diff(dim=-1)

    def used(self, level: int) -> Bool[Tensor, "S nodes slots_per_node"] | None:
        """Which slots of each node hold a key; None if all do."""
        if self.is_even:
            return None
        return torch.arange(self.slots >> level, device=self.lengths.device) < self.sizes(level)[..., None]

    def fill(self, level: int) -> Float[Tensor, "S nodes slots_per_node"] | None:
        """Projections of unused slots such that each half of a node's slots gets its share of them; 0 in used ones."""
        used = self.used(level)
        if used is None:
            return None
        half = self.slots >> (level + 1)
        size, left = self.sizes(level)[..., None], self.sizes(level + 1)[:, ::2, None]
        place = torch.arange(2 * half, device=size.device)
        goes_left = place < size + (half - left)
        return (
            torch.zeros(used.shape, device=size.device)
            .masked_fill_(~used, torch.inf)
            .masked_fill_(~used & goes_left, -torch.inf)
        )


@dataclass(frozen=True)
class _Turn:
    """The power steps that turn start directions towards the largest spread, as weighed by the queries' moments."""

    power_steps: int
    moments: Float[Tensor, "S H K K"] | None

    def project(
        self,
        projection: Float[Tensor, "S H nodes slots"],
        keys: Float[Tensor, "S H all_slots K"],
        *,
        used: Bool[Tensor, "S nodes slots"] | None,
    ) -> Float[Tensor, "S H nodes slots"]:
        """Projections on the turned directions, less a constant of the node."""
        S, H, nodes, slots = projection.shape
        rows = torch.unflatten(keys, -2, (nodes, slots)).flatten(0, 2)  # [S H nodes, slots, K]
        size = slots if used is None else used.sum(-1, keepdim=True)[:, None]
        for _ in range(self.power_steps):
            if used is not None:
                projection = projection * used[:, None]
            spread = projection - projection.sum(-1, keepdim=True) / size
            if used is not None:
                spread = spread * used[:, None]
            # The centred projections add up to 0, so the node's mean key drops out of C^T C d.
            direction = (spread.flatten(0, 2)[:, None] @ rows).view(S, H, nodes, -1)
            if self.moments is not None:
                direction = direction @ self.moments
            direction = F.normalize(direction, dim=-1).flatten(0, 2)[:, None]
            projection = (direction @ rows.transpose(-1, -2)).view(S, H, nodes, slots)
        return projection


def _moments(queries: Float[Tensor, "S H n K"], lengths: Int[Tensor, "S 1"]) -> Float[Tensor, "S H K K"]:
    """Mean outer product of queries spread evenly over each sequence."""
    count = min(queries.shape[-2], _MOST_SAMPLES)
    samples = lengths.clamp_max(count)
    number = torch.arange(count, device=queries.device)
    at = ((2 * number + 1) * lengths // (2 * samples)).minimum(lengths - 1)
    rows = take_rows(queries, at[:, None].expand(-1, queries.shape[1], -1)) * (number < samples)[:, None, :, None]
    return rows.transpose(-1, -2) @ rows / samples[..., None, None]


def _halve(
    keys: Float[Tensor, "S H n K"], directions: Float[Tensor, "levels K"], *, grid: _Grid, turn: _Turn
) -> Int[Tensor, "S H slots"]:
    """The position in every slot of the leaves."""
    S, H = keys.shape[:2]
    place = torch.arange(grid.slots, device=keys.device)
    order = torch.where(place < grid.lengths, place, 0)[:, None].expand(S, H, -1)
    rows = take_rows(keys, order)
    weight = None if grid.is_even else (place < grid.lengths)[:, None, :, None]
    total = (rows if weight is None else rows * weight).sum(-2, keepdim=True)
    centred = rows.sub_(total / grid.lengths[..., None, None])
    starts = directions @ centred.transpose(-1, -2)  # [S, H, levels, slots]
    # Memory that is new costs more than what is written into it.
    nodes = torch.empty_like(centred)
    for level in range(len(directions)):
        projection = torch.unflatten(starts[:, :, level].gather(-1, order), -1, (2**level, -1))
        if turn.power_steps:
            here = centred if level == 0 else take_rows(centred, order, out=nodes)
            projection = turn.project(projection, here, used=grid.used(level))
        order = _move_halves(order, projection, fill=grid.fill(level))
    return order


def _move_halves(
    order: Int[Tensor, "S H all_slots"],
    projection: Float[Tensor, "S H nodes slots"],
    *,
    fill: Float[Tensor, "S nodes slots"] | None,
) -> Int[Tensor, "S H all_slots"]:
    """A stable split: the lower half of every node moves left, of ties the first ones; both keep their order."""
    half = projection.shape[-1] // 2
    # Keys that are not finite must not lead a slot astray; what they give is lost anyway.
    value = torch.nan_to_num(projection, nan=0.0)
    if fill is not None:
        value = torch.where(fill[:, None] == 0, value, fill[:, None].to(value))
    median = value.kthvalue(half, dim=-1, keepdim=True).values
    below, tied = value < median, value == median
    room = half - below.sum(-1, keepdim=True)
    left = below | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))
    rank = left.cumsum(-1, dtype=torch.int32)
    place = torch.arange(half, 3 * half, device=order.device, dtype=torch.int32)
    target = torch.where(left, rank - 1, place - rank).long()
    moved = torch.empty_like(target).scatter_(-1, target, torch.unflatten(order, -1, projection.shape[-2:]))
    return moved.flatten(-2)
