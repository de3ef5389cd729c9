"""Splitting nodes at the median of a projection: the levels whose nodes fit into one program."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.moment_kernels import weigh, weigh_one
from sortyard.ops.bucket_attention.triton_backend.row_kernels import BY_LENGTH, load_rows


@triton.jit
@no_type_check
def ordered_bits(projection, BITS: tl.constexpr):
    """Signed integers in the order of the floats; -0.0 and 0.0 are the same."""
    projection = tl.where(projection == 0, 0.0, projection)
    INT: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    bits = projection.to(INT, bitcast=True)
    return bits ^ ((bits >> (BITS - 1)) & ((1 << (BITS - 1)) - 1))


@triton.jit
@no_type_check
def unit(direction):
    """A direction of length 1; the order of projections does not need it, their range does."""
    return direction / tl.maximum(tl.sqrt(tl.sum(direction * direction, -1, keep_dims=True)), 1e-12)


@triton.jit
@no_type_check
def centred_rows(keys, order, pivot, rank, valid, stride, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr):
    """The keys of some ranks less the sequence's pivot, zeros where not valid."""
    rows = load_rows(keys, tl.load(order + rank, mask=valid, other=0), valid, stride, K, KP).to(WIDE)
    return tl.where(valid[:, None], rows - pivot[None, :], 0.0)


@triton.jit
@no_type_check
def _project_wide_node(
    keys, order, projection, pivot, moments, direction, start, end, stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, POWER: tl.constexpr, BY_QUERIES: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Projections of one node's keys, rows read again in every pass."""
    for _ in tl.static_range(POWER):
        products = tl.zeros([ROWS, KP], WIDE)
        sums = tl.zeros([ROWS, KP], WIDE)
        total = tl.zeros([ROWS], WIDE)
        for at in range(0, WIDTH, ROWS):
            rank = start + at + tl.arange(0, ROWS)
            rows = centred_rows(keys, order, pivot, rank, rank < end, stride, K, KP, WIDE)
            along = tl.sum(rows * direction[None, :], 1)
            products += along[:, None] * rows
            sums += rows
            total += along
        mean = tl.sum(total, 0) / (end - start).to(WIDE)
        direction = tl.sum(products, 0) - mean * tl.sum(sums, 0)
        if BY_QUERIES:
            direction = weigh_one(direction, moments, KP)
        direction = unit(direction)
    for at in range(0, WIDTH, ROWS):
        rank = start + at + tl.arange(0, ROWS)
        rows = centred_rows(keys, order, pivot, rank, rank < end, stride, K, KP, WIDE)
        tl.store(projection + rank, tl.sum(rows * direction[None, :], 1), mask=rank < end)


@triton.jit
@no_type_check
def _project_small_nodes(
    keys, order, projection, pivot, moments, direction, first, level, length, stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, POWER: tl.constexpr, BY_QUERIES: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Projections of the keys of ROWS / WIDTH neighbouring nodes, rows read once."""
    node = first + tl.arange(0, ROWS // WIDTH).to(tl.int64)
    start = (node * length) >> level
    size = (((node + 1) * length) >> level) - start
    slot = tl.arange(0, WIDTH)[None, :]
    rank, valid = start[:, None] + slot, slot < size[:, None]
    flat_rank, flat_valid = tl.reshape(rank, [ROWS]), tl.reshape(valid, [ROWS])
    rows = centred_rows(keys, order, pivot, flat_rank, flat_valid, stride, K, KP, WIDE)
    rows = tl.reshape(rows, [ROWS // WIDTH, WIDTH, KP])
    along = tl.sum(rows * direction[None, None, :], 2)
    for _ in tl.static_range(POWER):
        mean = tl.sum(along, 1) / size.to(WIDE)
        centred = tl.where(valid, along - mean[:, None], 0.0)
        spread = tl.sum(centred[:, :, None] * rows, 1)
        if BY_QUERIES:  # products at a time: half as many as the rows have numbers
            spread = weigh(spread, moments, ROWS // WIDTH, WIDTH // 2 if WIDTH < 2 * KP else KP, KP)
        spread = unit(spread)
        along = tl.sum(rows * spread[:, None, :], 2)
    tl.store(projection + rank, along, mask=valid)


@triton.jit
@no_type_check
def _split_at_medians(
    order, projection, first, level, length, NODES: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr
):
    """Move each node's lower half to its front, both halves in rising position: all nodes at once."""
    node = first + tl.arange(0, NODES).to(tl.int64)
    start = (node * length) >> level
    size = (((node + 1) * length) >> level) - start
    left = (((2 * node + 1) * length) >> (level + 1)) - start
    slot = tl.arange(0, WIDTH)[None, :]
    valid = slot < size[:, None]
    positions = tl.load(order + start[:, None] + slot, mask=valid, other=0)
    bits = ordered_bits(tl.load(projection + start[:, None] + slot, mask=valid, other=0.0), BITS)
    one = tl.full([NODES], 1, bits.dtype)
    # The largest number with fewer than `left` projections below it is the last one that goes left.
    border = one << (BITS - 1)
    for bit in range(BITS):
        raised = border ^ (one << (BITS - 1 - bit))
        below = tl.sum((valid & (bits < raised[:, None])).to(tl.int32), 1)
        border = tl.where(below < left, raised, border)
    is_less = valid & (bits < border[:, None])
    is_tie = (valid & (bits == border[:, None])).to(tl.int32)
    free = left - tl.sum(is_less.to(tl.int32), 1)
    goes_left = is_less | ((is_tie > 0) & (tl.cumsum(is_tie, 1) <= free[:, None]))
    before = tl.cumsum(goes_left.to(tl.int32), 1)
    place = tl.where(goes_left, before - 1, left[:, None] + slot - before)
    tl.debug_barrier()
    tl.store(order + start[:, None] + place, positions, mask=valid)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def split_nodes(
    keys, pivots, moments, directions, lengths, order, projection, k_s, k_h, k_n, n, H, first_level,
    STEPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, POWER: tl.constexpr, BY_QUERIES: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """STEPS levels of one node of at most WIDTH keys; `order` is split in place, node by node.

    Grid: (nodes of first_level, sequences x heads). Other threads' stores are read behind barriers.
    """
    pair = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + pair // H).to(tl.int64)
    keys += (pair // H) * k_s + (pair % H) * k_h
    order += pair * n
    projection += pair * n
    dims = tl.arange(0, KP)
    pivot = tl.load(pivots + pair * KP + dims)
    moments += pair * (KP * KP)
    for step in tl.static_range(STEPS):
        level = first_level + step
        first = tl.program_id(0).to(tl.int64) << step
        direction = tl.load(directions + level * K + dims, mask=dims < K, other=0.0)
        if (WIDTH >> step) > ROWS:
            for node in range(1 << step):
                start = ((first + node) * length) >> level
                end = ((first + node + 1) * length) >> level
                _project_wide_node(
                    keys, order, projection, pivot, moments, direction, start, end, k_n,
                    WIDTH >> step, ROWS, POWER, BY_QUERIES, K, KP, WIDE,
                )  # fmt: skip
        else:
            for node in range(0, 1 << step, ROWS // (WIDTH >> step)):
                _project_small_nodes(
                    keys, order, projection, pivot, moments, direction, first + node, level, length, k_n,
                    WIDTH >> step, ROWS, POWER, BY_QUERIES, K, KP, WIDE,
                )  # fmt: skip
        tl.debug_barrier()
        _split_at_medians(order, projection, first, level, length, 1 << step, WIDTH >> step, BITS)
        tl.debug_barrier()
