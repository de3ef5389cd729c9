"""The columns of a tile of queries: which row stands behind each, and what its logit gets."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.row_kernels import leaf_start, node_size


@triton.jit
@no_type_check
def near_columns(column, choice, order, length, near, width, levels, bucket, CAUSAL: tl.constexpr):
    """Positions of the keys in the chosen leaves, and which columns hold one."""
    which = column // width
    leaf = tl.load(choice + which, mask=which < near, other=-1)
    start = leaf_start(leaf, length, levels, bucket, CAUSAL)
    rank = start + column % width
    valid = (leaf >= 0) & (rank < leaf_start(leaf + 1, length, levels, bucket, CAUSAL))
    position = rank
    if not CAUSAL:
        position = tl.load(order + rank, mask=valid, other=0).to(tl.int64)
    return position, valid


@triton.jit
@no_type_check
def extra_columns(column, globals_at, first, window, num_globals, length):
    """Positions of the window's keys, then of the global tokens."""
    is_window = column < window
    marked = tl.load(globals_at + column - window, mask=(column >= window) & (column < window + num_globals), other=-1)
    position = tl.where(is_window, first + column, marked)
    return position, is_window, (position >= 0) & (position < length)


@triton.jit
@no_type_check
def extra_visible(query, position, is_window, valid, own_from, local_window, CAUSAL: tl.constexpr):
    """Which queries read which extra columns; a global token in a query's window counts there, once."""
    far_back = query[:, None] - position[None, :]
    if CAUSAL:
        in_window = (far_back >= 0) & ((far_back <= local_window) | (position >= own_from)[None, :])
        is_past = far_back >= 0
    else:
        in_window = (far_back <= local_window) & (far_back >= -local_window)
        is_past = valid[None, :]
    return valid[None, :] & tl.where(is_window[None, :], in_window, is_past & (in_window == 0))


@triton.jit
@no_type_check
def extra_leaf(position, valid, leaf_of, bucket, CAUSAL: tl.constexpr):
    """The leaf of each extra column's key; -1 where there is none."""
    return tl.where(valid, position // bucket, -1) if CAUSAL else tl.load(leaf_of + position, mask=valid, other=-1)


@triton.jit
@no_type_check
def outside_near(leaf, choice, near):
    """Whether a key lies in none of the chosen leaves."""
    is_new = leaf >= 0
    for which in range(near):
        is_new = is_new & (leaf != tl.load(choice + which))
    return is_new


@triton.jit
@no_type_check
def far_columns(column, choice, far_heights, plan, near, far, length, levels, bucket, CAUSAL: tl.constexpr):
    """Table row, node, height and size of each summary; size 0 where there is none."""
    row = tl.load(choice + near + column, mask=column < far, other=-1)
    height = tl.load(far_heights + column, mask=column < far, other=0)
    node = row - tl.load(plan + 5 * height)
    size = tl.where(row >= 0, node_size(node, height, length, levels, bucket, CAUSAL), 0)
    return row, node, height, size


@triton.jit
@no_type_check
def hidden_members(
    query, node, height, leaf_of, globals_at, first, window, num_globals, length, own_from, local_window, bucket,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """How many keys of each summary's node a query reads exactly: [queries x extra] . [extra x summaries]."""
    hidden = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(0, window + num_globals, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        position, is_window, valid = extra_columns(column, globals_at, first, window, num_globals, length)
        visible = extra_visible(query, position, is_window, valid, own_from, local_window, CAUSAL)
        leaf = extra_leaf(position, valid, leaf_of, bucket, CAUSAL)
        inside = valid[:, None] & ((leaf[:, None] >> height[None, :]) == node[None, :])
        # Zeros and ones are exact in float16, and their sums in float32.
        hidden = tl.dot(visible.to(tl.float16), inside.to(tl.float16), hidden)
    return hidden
