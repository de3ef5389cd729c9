"""The top levels of the tree, whose nodes are spread over many programs: sum, project, split; one launch each."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.moment_kernels import weigh_one
from sortyard.ops.bucket_attention.triton_backend.row_kernels import BY_LENGTH, load_rows
from sortyard.ops.bucket_attention.triton_backend.split_kernels import centred_rows, ordered_bits, unit


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def make_pivots(keys, lengths, pivots, k_s, k_h, k_n, H, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr):
    """The mean of 64 keys spread over each sequence: near the true mean, so that sums of centred keys stay small.

    Grid: (sequences x heads).
    """
    pair = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + pair // H).to(tl.int64)
    sample = (tl.arange(0, 64).to(tl.int64) * length) >> 6
    rows = load_rows(keys + (pair // H) * k_s + (pair % H) * k_h, sample, sample < length, k_n, K, KP)
    tl.store(pivots + pair * KP + tl.arange(0, KP), tl.sum(rows.to(WIDE), 0) / 64)


@triton.jit
@no_type_check
def _spread_direction(
    partial, moments, tiles, size, BY_QUERIES: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """A node's direction from the sums of its tiles: sum of p x, less mean p times sum of x; M times that."""
    dims = tl.arange(0, KP)
    products = tl.zeros([16, KP], WIDE)
    sums = tl.zeros([16, KP], WIDE)
    totals = tl.zeros([16], WIDE)
    for at in range(0, tiles, 16):
        tile = at + tl.arange(0, 16)
        rows = partial + tile.to(tl.int64)[:, None] * (3 * KP) + dims[None, :]
        products += tl.load(rows, mask=(tile < tiles)[:, None], other=0.0)
        sums += tl.load(rows + KP, mask=(tile < tiles)[:, None], other=0.0)
        totals += tl.load(partial + tile.to(tl.int64) * (3 * KP) + 2 * KP, mask=tile < tiles, other=0.0)
    mean = tl.sum(totals, 0) / size.to(WIDE)
    direction = tl.sum(products, 0) - mean * tl.sum(sums, 0)
    if BY_QUERIES:
        direction = weigh_one(direction, moments, KP)
    return unit(direction)


@triton.jit
@no_type_check
def _node_direction(
    direction, sums, moments, node_number, tiles, size, dims,
    FROM_SUMS: tl.constexpr, BY_QUERIES: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if FROM_SUMS:
        along = _spread_direction(
            sums + node_number * tiles * (3 * KP), moments, tiles, size, BY_QUERIES, KP, WIDE
        )  # fmt: skip
    else:
        along = tl.load(direction + dims, mask=dims < K, other=0.0)
    return along


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def sum_tiles(
    keys, pivots, moments, direction, lengths, order, sums_in, sums_out, k_s, k_h, k_n, n, H, level,
    TILE: tl.constexpr, ROWS: tl.constexpr, FROM_SUMS: tl.constexpr, BY_QUERIES: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One power step's sums over a tile of a node's keys. Grid: (tiles of a node, nodes, sequences x heads)."""
    pair = tl.program_id(2).to(tl.int64)
    node, tiles = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    length = tl.load(lengths + pair // H).to(tl.int64)
    start, end = (node * length) >> level, ((node + 1) * length) >> level
    keys += (pair // H) * k_s + (pair % H) * k_h
    dims = tl.arange(0, KP)
    pivot = tl.load(pivots + pair * KP + dims)
    number = pair * tl.num_programs(1) + node
    moments += pair * (KP * KP)
    along = _node_direction(
        direction, sums_in, moments, number, tiles, end - start, dims, FROM_SUMS, BY_QUERIES, K, KP, WIDE
    )  # fmt: skip
    products = tl.zeros([ROWS, KP], WIDE)
    sums = tl.zeros([ROWS, KP], WIDE)
    total = tl.zeros([ROWS], WIDE)
    for at in range(0, TILE, ROWS):
        rank = start + tl.program_id(0).to(tl.int64) * TILE + at + tl.arange(0, ROWS)
        rows = centred_rows(keys, order + pair * n, pivot, rank, rank < end, k_n, K, KP, WIDE)
        projected = tl.sum(rows * along[None, :], 1)
        products += projected[:, None] * rows
        sums += rows
        total += projected
    out = sums_out + (number * tiles + tl.program_id(0)) * (3 * KP) + dims
    tl.store(out, tl.sum(products, 0))
    tl.store(out + KP, tl.sum(sums, 0))
    tl.store(out + 2 * KP, tl.where(dims == 0, tl.sum(total, 0), 0.0))


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def project_tiles(
    keys, pivots, moments, direction, lengths, order, sums_in, projection, k_s, k_h, k_n, n, H, level,
    TILE: tl.constexpr, ROWS: tl.constexpr, FROM_SUMS: tl.constexpr, BY_QUERIES: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Projections of a tile of a node's keys. Grid: (tiles of a node, nodes, sequences x heads)."""
    pair = tl.program_id(2).to(tl.int64)
    node, tiles = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    length = tl.load(lengths + pair // H).to(tl.int64)
    start, end = (node * length) >> level, ((node + 1) * length) >> level
    keys += (pair // H) * k_s + (pair % H) * k_h
    dims = tl.arange(0, KP)
    pivot = tl.load(pivots + pair * KP + dims)
    number = pair * tl.num_programs(1) + node
    moments += pair * (KP * KP)
    along = _node_direction(
        direction, sums_in, moments, number, tiles, end - start, dims, FROM_SUMS, BY_QUERIES, K, KP, WIDE
    )  # fmt: skip
    for at in range(0, TILE, ROWS):
        rank = start + tl.program_id(0).to(tl.int64) * TILE + at + tl.arange(0, ROWS)
        rows = centred_rows(keys, order + pair * n, pivot, rank, rank < end, k_n, K, KP, WIDE)
        tl.store(projection + pair * n + rank, tl.sum(rows * along[None, :], 1), mask=rank < end)


@triton.jit
@no_type_check
def _last_on_the_left(projection, start, end, left, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """The largest number with fewer than `left` projections below it, two bits a pass."""
    INT: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    border = tl.full([], 1, INT) << (BITS - 1)
    for digit in range(BITS // 2):
        one = tl.full([], 1, INT) << (BITS - 2 - 2 * digit)
        low, middle, high = border ^ one, border ^ (one << 1), border ^ (one | (one << 1))
        below_low = tl.zeros([BLOCK], tl.int32)
        below_middle = tl.zeros([BLOCK], tl.int32)
        below_high = tl.zeros([BLOCK], tl.int32)
        for at in range(start, end, BLOCK):
            rank = at + tl.arange(0, BLOCK)
            valid = rank < end
            bits = ordered_bits(tl.load(projection + rank, mask=valid, other=0.0), BITS)
            below_low += (valid & (bits < low)).to(tl.int32)
            below_middle += (valid & (bits < middle)).to(tl.int32)
            below_high += (valid & (bits < high)).to(tl.int32)
        border = tl.where(tl.sum(below_low, 0) < left, low, border)
        border = tl.where(tl.sum(below_middle, 0) < left, middle, border)
        border = tl.where(tl.sum(below_high, 0) < left, high, border)
    return border


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def partition_nodes(
    projection, lengths, order_in, order_out, n, H, level, BLOCK: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Split one node's keys at the median, halves in rising position. Grid: (nodes, sequences x heads)."""
    pair = tl.program_id(1).to(tl.int64)
    node = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + pair // H).to(tl.int64)
    start, end = (node * length) >> level, ((node + 1) * length) >> level
    left = (((2 * node + 1) * length) >> (level + 1)) - start
    projection += pair * n
    border = _last_on_the_left(projection, start, end, left, BLOCK, BITS)
    less = tl.zeros([BLOCK], tl.int32)
    for at in range(start, end, BLOCK):
        rank = at + tl.arange(0, BLOCK)
        bits = ordered_bits(tl.load(projection + rank, mask=rank < end, other=0.0), BITS)
        less += ((rank < end) & (bits < border)).to(tl.int32)
    free = left - tl.sum(less, 0)
    num_left = left * 0
    num_ties = left * 0
    for at in range(start, end, BLOCK):
        rank = at + tl.arange(0, BLOCK)
        valid = rank < end
        positions = tl.load(order_in + pair * n + rank, mask=valid, other=0)
        bits = ordered_bits(tl.load(projection + rank, mask=valid, other=0.0), BITS)
        is_tie = (valid & (bits == border)).to(tl.int32)
        goes_left = (valid & (bits < border)) | ((is_tie > 0) & (num_ties + tl.cumsum(is_tie, 0) <= free))
        before = num_left + tl.cumsum(goes_left.to(tl.int32), 0)
        place = tl.where(goes_left, before - 1, left + (rank - start) - before)
        tl.store(order_out + pair * n + start + place, positions, mask=valid)
        num_ties += tl.sum(is_tie, 0)
        num_left += tl.sum(goes_left.to(tl.int32), 0)
