"""Launches that sort the keys into the content tree, sum its nodes and let every chunk choose."""

from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.triton_backend.descent_kernel import choose_nodes
from sortyard.ops.bucket_attention.triton_backend.level_kernels import (
    make_pivots,
    partition_nodes,
    project_tiles,
    sum_tiles,
)
from sortyard.ops.bucket_attention.triton_backend.mean_kernels import sum_leaves, sum_nodes
from sortyard.ops.bucket_attention.triton_backend.moment_kernels import read_moments
from sortyard.ops.bucket_attention.triton_backend.plan import start_directions
from sortyard.ops.bucket_attention.triton_backend.problem import Problem
from sortyard.ops.bucket_attention.triton_backend.split_kernels import split_nodes
from sortyard.ops.bucket_attention.triton_backend.wide_descent import descend_widely


@dataclass(frozen=True)
class Blocking:
    """How the tree is cut into programs; guesses for an H100 that no measurement has confirmed.

    Args:
        subtree: Most keys of a node whose levels below are all one program's, a power of two.
        node: Most keys of a node that one program splits alone, a power of two.
        tile: Keys of a larger node that one program projects.
        rows: Keys on chip at a time.
        scan: Projections that the split of a larger node looks at a time.
        leaves: Leaves that one program sums, a power of two.
        nodes: Nodes that one program sums, a power of two.
        lanes: Most candidates that one program ranks; it compares all with all.
    """

    subtree: int = 1024
    node: int = 4096
    tile: int = 2048
    rows: int = 64
    scan: int = 4096
    leaves: int = 8
    nodes: int = 32
    lanes: int = 128


BLOCKING = Blocking()

# Queries that the moments are taken over.
_SAMPLES = 256


@dataclass(frozen=True)
class Sorted:
    """The keys' places and the nodes' means.

    Args:
        order: Positions by rank; the positions themselves in causal use, where it is empty.
        leaf_of: Leaf of each position; empty in causal use.
        key_means: Mean keys of all nodes, leaves first, as wide as the sums.
        value_means: Mean values, as the inputs are stored.
        spreads: Mean squared distance of each node's keys to their mean; None where no score needs it.
    """

    order: Int[Tensor, "..."]
    leaf_of: Int[Tensor, "..."]
    key_means: Float[Tensor, "S H nodes K"]
    value_means: Float[Tensor, "S H nodes K"]
    spreads: Float[Tensor, "S H nodes"] | None


def sort_keys(
    queries: Float[Tensor, "S H n K"], keys: Float[Tensor, "S H n K"], problem: Problem
) -> Int[Tensor, "..."]:
    """Positions of the keys by rank in the content tree, sequence by sequence and head by head."""
    S, H, n, K = problem.shape
    if problem.causal:
        return torch.empty(0, dtype=torch.int32, device=keys.device)
    order = torch.arange(n, dtype=torch.int32, device=keys.device).expand(S, H, n).contiguous()
    pivots = torch.empty(problem.pairs, problem.width, dtype=problem.wide, device=keys.device)
    strides = keys.stride()[:3]
    make_pivots[(problem.pairs,)](
        keys, problem.lengths, pivots, *strides, H, K=K, KP=problem.width, WIDE=problem.wide_type, num_warps=2
    )
    moments = _moments(queries, problem) if problem.turns_to_queries else pivots
    projection = torch.empty(S, H, n, dtype=problem.wide, device=keys.device)
    for level in range(problem.plan.levels):
        size = -(-n // 2**level)
        if size > BLOCKING.node:
            order = _split_level(keys, pivots, moments, order, projection, level, problem)
            continue
        is_last = size <= BLOCKING.subtree
        steps = problem.plan.levels - level if is_last else 1
        _split_nodes(keys, pivots, moments, order, projection, level, problem, steps=steps)
        if is_last:
            break
    return order


def _moments(queries: Tensor, problem: Problem) -> Tensor:
    """What each head's queries see of every direction: [pairs, width, width], zeros beyond K."""
    _, H, _, K = problem.shape
    width, block = problem.width, min(64, problem.width)
    moments = torch.empty(problem.pairs, width, width, dtype=problem.wide, device=queries.device)
    read_moments[(width // block, problem.pairs)](
        queries, problem.lengths, moments, *queries.stride()[:3], H, SAMPLES=_SAMPLES, ROWS=32, BLOCK=block,
        K=K, KP=width, DOT=problem.product_type, WIDE=problem.wide_type, num_warps=4,
    )  # fmt: skip
    return moments


def _directions(problem: Problem, device: torch.device) -> Tensor:
    return start_directions(
        problem.plan.levels, head_dim=problem.shape[3], seed=problem.spec.seed, dtype=problem.wide, device=device
    )


def _split_nodes(
    keys: Tensor, pivots: Tensor, moments: Tensor, order: Tensor, projection: Tensor, level: int, problem: Problem,
    *, steps: int,
) -> None:  # fmt: skip
    _, H, n, K = problem.shape
    width = max(2, triton.next_power_of_2(-(-n // 2**level)))
    split_nodes[(2**level, problem.pairs)](
        keys, pivots, moments, _directions(problem, keys.device), problem.lengths, order, projection,
        *keys.stride()[:3], n, H, level, STEPS=steps, WIDTH=width, ROWS=min(BLOCKING.rows, width),
        POWER=problem.spec.power_steps, BY_QUERIES=problem.turns_to_queries, K=K, KP=problem.width,
        WIDE=problem.wide_type, BITS=_bits(problem), num_warps=4 if width <= 1024 else 8,
    )  # fmt: skip


def _split_level(
    keys: Tensor, pivots: Tensor, moments: Tensor, order: Tensor, projection: Tensor, level: int, problem: Problem
) -> Tensor:
    _, H, n, K = problem.shape
    tiles = triton.cdiv(-(-n // 2**level), BLOCKING.tile)
    grid = (tiles, 2**level, problem.pairs)
    direction = _directions(problem, keys.device)[level]
    sums = projection  # read by nobody before the first power step has written
    common = (*keys.stride()[:3], n, H, level)
    options = {
        "TILE": BLOCKING.tile, "ROWS": BLOCKING.rows, "K": K, "KP": problem.width, "WIDE": problem.wide_type,
        "BY_QUERIES": problem.turns_to_queries, "num_warps": 4,
    }  # fmt: skip
    for step in range(problem.spec.power_steps):
        out = torch.empty(problem.pairs, 2**level, tiles, 3, problem.width, dtype=problem.wide, device=keys.device)
        sum_tiles[grid](
            keys, pivots, moments, direction, problem.lengths, order, sums, out, *common, FROM_SUMS=step > 0, **options
        )
        sums = out
    project_tiles[grid](
        keys, pivots, moments, direction, problem.lengths, order, sums, projection, *common,
        FROM_SUMS=problem.spec.power_steps > 0, **options,
    )  # fmt: skip
    split = torch.empty_like(order)
    partition_nodes[(2**level, problem.pairs)](
        projection, problem.lengths, order, split, n, H, level, BLOCK=BLOCKING.scan, BITS=_bits(problem), num_warps=16
    )
    return split


def _bits(problem: Problem) -> int:
    return 64 if problem.wide == torch.float64 else 32


def sum_tree(
    keys: Float[Tensor, "S H n K"],
    values: Float[Tensor, "S H n K"],
    order: Int[Tensor, "..."],
    problem: Problem,
    *,
    needs_spreads: bool,
) -> Sorted:
    """Leaf of every key, means and, where needed, spreads of every node, bottom-up."""
    S, H, n, K = problem.shape
    plan, device = problem.plan, keys.device
    key_means = torch.empty(S, H, plan.num_nodes, K, dtype=problem.wide, device=device)
    value_means = torch.empty(S, H, plan.num_nodes, K, dtype=problem.stored, device=device)
    spreads = torch.empty(S, H, plan.num_nodes, dtype=problem.wide, device=device) if needs_spreads else None
    leaf_of = torch.empty_like(order)
    count, height = triton.cdiv(plan.nodes[0], BLOCKING.leaves), BLOCKING.leaves.bit_length() - 1
    sums = torch.empty(problem.pairs, count, 2, problem.width, dtype=problem.wide, device=device)
    slots = max(4, min(16, 1024 // problem.width))  # more rows of wide heads do not fit into the registers
    away = torch.empty(problem.pairs, count, dtype=problem.wide, device=device)
    common = {
        "CAUSAL": problem.causal, "SPREADS": needs_spreads, "K": K, "KP": problem.width, "num_warps": 8
    }  # fmt: skip
    sum_leaves[(count, problem.pairs)](
        keys, values, order, leaf_of, problem.lengths, problem.table, key_means, value_means, spreads, sums, away,
        *keys.stride()[:3], *values.stride()[:3], n, H, plan.levels, plan.width, plan.width, plan.heights,
        plan.num_nodes, LEAVES=BLOCKING.leaves, STEPS=height, SLOTS=min(slots, triton.next_power_of_2(plan.width)),
        WIDE=problem.wide_type, **common,
    )  # fmt: skip
    steps = BLOCKING.nodes.bit_length() - 1
    while height + 1 < plan.heights:
        blocks = triton.cdiv(count, BLOCKING.nodes)
        above = torch.empty(problem.pairs, blocks, 2, problem.width, dtype=problem.wide, device=device)
        away_above = torch.empty(problem.pairs, blocks, dtype=problem.wide, device=device)
        sum_nodes[(blocks, problem.pairs)](
            sums, away, above, away_above, problem.lengths, problem.table, key_means, value_means, spreads, height,
            count, H, plan.levels, plan.width, plan.heights, plan.num_nodes, NODES=BLOCKING.nodes, STEPS=steps,
            **common,
        )  # fmt: skip
        sums, away, count, height = above, away_above, blocks, height + steps
    return Sorted(order, leaf_of, key_means, value_means, spreads)


def descend(queries: Float[Tensor, "S H n K"], tree: Sorted, problem: Problem) -> Int[Tensor, "S H C columns"]:
    """What each chunk chose: near leaves, then table rows of the summaries by height, leaves first; -1 is none."""
    S, H, _, K = problem.shape
    plan, spec = problem.plan, problem.spec
    lanes = max(16, triton.next_power_of_2(max(plan.candidates)))
    if lanes > BLOCKING.lanes:
        return descend_widely(queries, tree.key_means, tree.spreads, problem)
    choice = torch.empty(S, H, problem.chunks, plan.near + plan.far, dtype=torch.int32, device=queries.device)
    choose_nodes[(problem.chunks, problem.pairs)](
        queries, tree.key_means, tree.spreads, problem.lengths, problem.table, choice,
        *queries.stride()[:3], H, spec.query_chunk, plan.width, plan.heights, plan.num_nodes, plan.near,
        plan.near + plan.far, LANES=lanes, ROWS=min(16, triton.next_power_of_2(spec.query_chunk)),
        CAUSAL=problem.causal, SPREADS=problem.adds_spread, SCALE=K**-0.5, TINY=torch.finfo(problem.wide).tiny,
        K=K, KP=problem.width, WIDE=problem.wide_type, num_warps=1 if lanes <= 32 else 4,
    )  # fmt: skip
    return choice
