"""Mean squared distances of the nodes' keys to their means, bottom-up; no large numbers are subtracted."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.row_kernels import load_rows, node_size


@triton.jit
@no_type_check
def add_away(away, sums, count, rows, valid, WIDE: tl.constexpr):
    """Squared distances to the mean, summed over each leaf's `count` keys so far and its next rows [leaf, slot, KP]."""
    more = tl.sum(valid.to(WIDE), 1)
    added = tl.sum(rows, 1)
    mean = added / tl.maximum(more, 1.0)[:, None]
    apart = tl.where(valid[:, :, None], rows - mean[:, None, :], 0.0)
    gap = mean - sums / tl.maximum(count, 1.0)[:, None]
    between = tl.sum(gap * gap, 1) * (count * more / tl.maximum(count + more, 1.0))
    return away + tl.sum(tl.sum(apart * apart, 2), 1) + between


@triton.jit
@no_type_check
def store_spreads(away, spreads, plan, height, node, length, levels):
    """Write the spreads of some nodes of one height; the table's rows are leaves first."""
    size = tl.maximum(node_size(node, height, length, levels, 0, False), 1)
    valid = node < tl.load(plan + 5 * height + 1)
    tl.store(spreads + tl.load(plan + 5 * height) + node, away / size.to(away.dtype), mask=valid)


@triton.jit
@no_type_check
def climb_spreads(
    away, sums, spreads, out, plan, first_height, block, length, levels, heights,
    NODES: tl.constexpr, STEPS: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Spreads of the ancestors of NODES = 2^STEPS neighbouring nodes; the topmost one's distances go to `out`.

    A node's distances are those of its children and of their means to its own.
    """
    for step in tl.static_range(1, STEPS + 1):
        child = block * (NODES >> (step - 1)) + tl.arange(0, NODES >> (step - 1))
        # Nodes above the root have no size; nothing reads what is made of them.
        size = node_size(child, tl.minimum(first_height + step - 1, levels), length, levels, 0, False).to(away.dtype)
        means = tl.reshape(sums / tl.maximum(size, 1.0)[:, None], [NODES >> step, 2, KP])
        size = tl.reshape(size, [NODES >> step, 2])
        sums = tl.sum(tl.reshape(sums, [NODES >> step, 2, KP]), 1)
        gap = means - (sums / tl.maximum(tl.sum(size, 1), 1.0)[:, None])[:, None, :]
        away = tl.sum(tl.reshape(away, [NODES >> step, 2]) + size * tl.sum(gap * gap, 2), 1)
        if first_height + step < heights:
            node = block * (NODES >> step) + tl.arange(0, NODES >> step)
            store_spreads(away, spreads, plan, first_height + step, node, length, levels)
    tl.store(out + tl.arange(0, 1), away)


@triton.jit
@no_type_check
def least_spread(
    means, spreads, plan, heights, length, TINY: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """A millionth of the spread of all keys, from the two nodes below the root, and not below TINY."""
    first = tl.load(plan + 5 * (heights - 1))
    child = tl.arange(0, 2)
    share = tl.where(child == 0, length // 2, length - length // 2).to(WIDE) / length.to(WIDE)
    rows = load_rows(means, first + child, child < 2, K, K, KP).to(WIDE)
    gap = rows - tl.sum(share[:, None] * rows, 0)[None, :]
    spread = tl.sum(share * (tl.load(spreads + first + child) + tl.sum(gap * gap, 1)), 0)
    return tl.maximum(spread * 1e-6, TINY)
