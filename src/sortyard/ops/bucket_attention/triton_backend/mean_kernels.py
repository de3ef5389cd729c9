"""Node means bottom-up, and their gradients back down to the members."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.row_kernels import (
    BY_LENGTH,
    leaf_start,
    load_rows,
    node_size,
    store_rows,
)
from sortyard.ops.bucket_attention.triton_backend.spread_kernels import add_away, climb_spreads, store_spreads


@triton.jit
@no_type_check
def _store_means(
    sums, means, plan, height, node, length, levels, bucket,
    CAUSAL: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Write the means of some nodes of one height; the table's rows are leaves first."""
    size = tl.maximum(node_size(node, height, length, levels, bucket, CAUSAL), 1)
    valid = node < tl.load(plan + 5 * height + 1)
    store_rows(means, sums / size.to(sums.dtype)[:, None], tl.load(plan + 5 * height) + node, valid, K, K, KP)


@triton.jit
@no_type_check
def _climb(
    sums, means, out, plan, first_height, block, length, levels, bucket, heights,
    NODES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Means of the ancestors of NODES = 2^STEPS neighbouring nodes; the topmost one's sum goes to `out`."""
    for step in tl.static_range(1, STEPS + 1):
        sums = tl.sum(tl.reshape(sums, [NODES >> step, 2, KP]), 1)
        if first_height + step < heights:
            node = block * (NODES >> step) + tl.arange(0, NODES >> step)
            _store_means(sums, means, plan, first_height + step, node, length, levels, bucket, CAUSAL, K, KP)
    tl.store(out + tl.arange(0, KP)[None, :], sums)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def sum_leaves(
    keys, values, order, leaf_of, lengths, plan, key_means, value_means, spreads, sums, away_out,
    k_s, k_h, k_n, v_s, v_h, v_n, n, H, levels, bucket, width, heights, num_nodes,
    LEAVES: tl.constexpr, STEPS: tl.constexpr, SLOTS: tl.constexpr, CAUSAL: tl.constexpr, SPREADS: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Means of LEAVES = 2^STEPS neighbouring leaves and their lower ancestors; marks every key with its leaf.

    With SPREADS (of trees of content only), spreads of the same nodes.

    Grid: (blocks of leaves, sequences x heads).
    """
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + pair // H).to(tl.int64)
    keys += (pair // H) * k_s + (pair % H) * k_h
    values += (pair // H) * v_s + (pair % H) * v_h
    leaf = block * LEAVES + tl.arange(0, LEAVES)
    exists = leaf < tl.load(plan + 1)
    start = leaf_start(leaf, length, levels, bucket, CAUSAL)
    end = leaf_start(leaf + 1, length, levels, bucket, CAUSAL)
    key_sums = tl.zeros([LEAVES, KP], WIDE)
    value_sums = tl.zeros([LEAVES, KP], WIDE)
    away = tl.zeros([LEAVES], WIDE)
    for at in range(0, width, SLOTS):
        rank = start[:, None] + at + tl.arange(0, SLOTS)[None, :]
        valid = (rank < end[:, None]) & exists[:, None]
        position = rank
        if not CAUSAL:
            position = tl.load(order + pair * n + rank, mask=valid, other=0).to(tl.int64)
            tl.store(leaf_of + pair * n + position, tl.broadcast_to(leaf[:, None], [LEAVES, SLOTS]), mask=valid)
        flat, flat_valid = tl.reshape(position, [LEAVES * SLOTS]), tl.reshape(valid, [LEAVES * SLOTS])
        rows = load_rows(keys, flat, flat_valid, k_n, K, KP).to(WIDE)
        rows = tl.reshape(rows, [LEAVES, SLOTS, KP])
        if SPREADS:
            away = add_away(away, key_sums, tl.minimum(at, end - start).to(WIDE), rows, valid, WIDE)
        key_sums += tl.sum(rows, 1)
        rows = load_rows(values, flat, flat_valid, v_n, K, KP).to(WIDE)
        value_sums += tl.sum(tl.reshape(rows, [LEAVES, SLOTS, KP]), 1)
    key_means += pair * num_nodes * K
    value_means += pair * num_nodes * K
    _store_means(key_sums, key_means, plan, 0, leaf, length, levels, bucket, CAUSAL, K, KP)
    _store_means(value_sums, value_means, plan, 0, leaf, length, levels, bucket, CAUSAL, K, KP)
    out = sums + (pair * tl.num_programs(0) + block) * 2 * KP
    _climb(
        key_sums, key_means, out, plan, 0, block, length, levels, bucket, heights, LEAVES, STEPS, CAUSAL, K, KP
    )  # fmt: skip
    _climb(
        value_sums, value_means, out + KP, plan, 0, block, length, levels, bucket, heights, LEAVES, STEPS, CAUSAL, K, KP
    )  # fmt: skip
    if SPREADS:
        spreads += pair * num_nodes
        store_spreads(away, spreads, plan, 0, leaf, length, levels)
        out = away_out + pair * tl.num_programs(0) + block
        climb_spreads(away, key_sums, spreads, out, plan, 0, block, length, levels, heights, LEAVES, STEPS, KP)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def sum_nodes(
    sums_in, away_in, sums_out, away_out, lengths, plan, key_means, value_means, spreads,
    first_height, count, H, levels, bucket, heights, num_nodes,
    NODES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, SPREADS: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """The next STEPS heights from the sums of `count` nodes. Grid: (blocks of nodes, sequences x heads)."""
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + pair // H).to(tl.int64)
    node = block * NODES + tl.arange(0, NODES)
    rows = sums_in + (pair * count + node)[:, None] * (2 * KP) + tl.arange(0, KP)[None, :]
    out = sums_out + (pair * tl.num_programs(0) + block) * 2 * KP
    key_means += pair * num_nodes * K
    value_means += pair * num_nodes * K
    sums = tl.load(rows, mask=(node < count)[:, None], other=0.0)
    _climb(
        sums, key_means, out, plan, first_height, block, length, levels, bucket, heights, NODES, STEPS, CAUSAL, K, KP
    )  # fmt: skip
    if SPREADS:
        away = tl.load(away_in + pair * count + node, mask=node < count, other=0.0)
        climb_spreads(
            away, sums, spreads + pair * num_nodes, away_out + pair * tl.num_programs(0) + block, plan, first_height,
            block, length, levels, heights, NODES, STEPS, KP,
        )  # fmt: skip
    sums = tl.load(rows + KP, mask=(node < count)[:, None], other=0.0)
    _climb(
        sums, value_means, out + KP, plan, first_height, block, length, levels, bucket, heights,
        NODES, STEPS, CAUSAL, K, KP,
    )  # fmt: skip


@triton.jit
@no_type_check
def _ancestors_share(
    grads, plan, leaf, length, levels, bucket, heights, n,
    LEAVES: tl.constexpr, CAUSAL: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """What each key of a leaf gets from the means of the nodes above it."""
    share = tl.zeros([LEAVES, KP], grads.dtype.element_ty)
    for height in range(heights):
        node = leaf >> height
        size = tl.maximum(node_size(node, height, length, levels, bucket, CAUSAL), 1)
        rows = load_rows(
            grads, n + tl.load(plan + 5 * height) + node, node < tl.load(plan + 5 * height + 1), K, K, KP
        )  # fmt: skip
        share += rows / size.to(rows.dtype)[:, None]
    return share


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def spread_gradients(
    grads, order, lengths, plan, key_grads, value_grads,
    k_s, k_h, k_n, v_s, v_h, v_n, n, H, pairs, levels, bucket, width, heights, num_nodes,
    LEAVES: tl.constexpr, SLOTS: tl.constexpr, CAUSAL: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: their own rows of `grads` plus a share of every ancestor's row.

    Rows of `grads` are [positions | nodes]. Grid: (blocks of leaves, sequences x heads, keys or values).
    """
    pair, which = tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(lengths + pair // H).to(tl.int64)
    grads += (which * pairs + pair) * (n + num_nodes) * K
    out = key_grads + (pair // H) * k_s + (pair % H) * k_h
    stride = k_n
    if which == 1:
        out = value_grads + (pair // H) * v_s + (pair % H) * v_h
        stride = v_n
    leaf = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)
    start = leaf_start(leaf, length, levels, bucket, CAUSAL)
    end = leaf_start(leaf + 1, length, levels, bucket, CAUSAL)
    share = _ancestors_share(grads, plan, leaf, length, levels, bucket, heights, n, LEAVES, CAUSAL, K, KP)
    share = tl.broadcast_to(share[:, None, :], [LEAVES, SLOTS, KP])
    for at in range(0, width, SLOTS):
        rank = start[:, None] + at + tl.arange(0, SLOTS)[None, :]
        valid = rank < end[:, None]
        position = rank
        if not CAUSAL:
            position = tl.load(order + pair * n + rank, mask=valid, other=0).to(tl.int64)
        flat, flat_valid = tl.reshape(position, [LEAVES * SLOTS]), tl.reshape(valid, [LEAVES * SLOTS])
        rows = load_rows(grads, flat, flat_valid, K, K, KP) + tl.reshape(share, [LEAVES * SLOTS, KP])
        store_rows(out, rows, flat, flat_valid, stride, K, KP)
