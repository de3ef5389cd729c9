"""Attention of a tile of queries over [near leaves | window and global tokens | summaries], forward and backward."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.column_kernels import (
    extra_columns,
    extra_leaf,
    extra_visible,
    far_columns,
    hidden_members,
    near_columns,
    outside_near,
)
from sortyard.ops.bucket_attention.triton_backend.row_kernels import BY_LENGTH, load_rows, store_rows


@triton.jit
@no_type_check
def _tile(lengths, n, H, chunk, tiles, bucket, local_window, ROWS: tl.constexpr, CAUSAL: tl.constexpr):
    """A program's queries, and where its window begins and how wide it is (0 behind the sequence's end)."""
    pair = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + pair // H)
    chunk_number = tl.program_id(0) // tiles
    first = chunk_number * chunk + (tl.program_id(0) % tiles) * ROWS
    query = first + tl.arange(0, ROWS)
    in_chunk = (query < (chunk_number + 1) * chunk) & (query < n)
    own_from = chunk_number * chunk // bucket * bucket
    if CAUSAL:
        window_from = tl.maximum(tl.minimum(first - local_window, own_from), 0)
        window_to = tl.minimum(first + ROWS, length)
    else:
        window_from = tl.maximum(first - local_window, 0)
        window_to = tl.minimum(first + ROWS + local_window, length)
    is_live = (first < length).to(tl.int32)
    window = tl.maximum(window_to - window_from, 0)
    return pair, length, chunk_number, query, in_chunk, own_from, window_from, window, is_live


@triton.jit
@no_type_check
def _accumulate(
    logits, keep, values, top, total, out, DOT: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """One step of the online softmax, in powers of 2."""
    logits = tl.where(keep, logits, -float("inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    # A row that has read nothing yet has no maximum to subtract.
    safe_top = tl.where(new_top == -float("inf"), 0.0, new_top)
    weights = tl.exp2(logits - safe_top[:, None])
    fade = tl.exp2(top - safe_top)
    total = total * fade + tl.sum(weights, 1)
    out = tl.dot(weights.to(DOT), values.to(DOT), out * fade[:, None], input_precision="tf32x3", out_dtype=WIDE)
    return new_top, total, out


@triton.jit
@no_type_check
def _logits(queries, keys, scale, DOT: tl.constexpr, WIDE: tl.constexpr):
    return tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision="tf32x3", out_dtype=WIDE) * scale


@triton.jit
@no_type_check
def _log_counts(size, hidden, WIDE: tl.constexpr):
    """log2 of the keys that a summary stands for, and whether there are any."""
    counts = size.to(WIDE)[None, :] - hidden.to(WIDE)
    return tl.log2(tl.maximum(counts, 1.0)), counts > 0.5


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def attend_forward(
    q, k, v, key_means, value_means, order, leaf_of, choice, far_heights, globals_at, lengths, plan, out, lse,
    q_s, q_h, q_n, k_s, k_h, k_n, v_s, v_h, v_n, o_s, o_h, o_n,
    n, H, chunk, tiles, near, far, num_globals, width, levels, bucket, num_nodes, local_window, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Outputs and log2-sums of one tile of queries; zeros at pads. Grid: (chunks x tiles, sequences x heads)."""
    pair, length, chunk_number, query, in_chunk, own_from, window_from, window, is_live = _tile(
        lengths, n, H, chunk, tiles, bucket, local_window, ROWS, CAUSAL
    )
    k += (pair // H) * k_s + (pair % H) * k_h
    v += (pair // H) * v_s + (pair % H) * v_h
    key_means += pair * num_nodes * K
    value_means += pair * num_nodes * K
    order += pair * n
    leaf_of += pair * n
    globals_at += (pair // H) * num_globals
    choice += (pair * (tl.num_programs(0) // tiles) + chunk_number) * (near + far)
    is_real = in_chunk & (query < length)
    queries = load_rows(q + (pair // H) * q_s + (pair % H) * q_h, query, is_real, q_n, K, KP)
    top = tl.full([ROWS], -float("inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    result = tl.zeros([ROWS, KP], WIDE)
    for at in range(0, near * width * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        position, valid = near_columns(column, choice, order, length, near, width, levels, bucket, CAUSAL)
        logits = _logits(queries, load_rows(k, position, valid, k_n, K, KP), scale, DOT, WIDE)
        rows = load_rows(v, position, valid, v_n, K, KP)
        top, total, result = _accumulate(logits, valid[None, :], rows, top, total, result, DOT, WIDE)
    for at in range(0, (window + num_globals) * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        position, is_window, valid = extra_columns(column, globals_at, window_from, window, num_globals, length)
        visible = extra_visible(query, position, is_window, valid, own_from, local_window, CAUSAL)
        is_new = outside_near(extra_leaf(position, valid, leaf_of, bucket, CAUSAL), choice, near)
        logits = _logits(queries, load_rows(k, position, is_new, k_n, K, KP), scale, DOT, WIDE)
        rows = load_rows(v, position, is_new, v_n, K, KP)
        top, total, result = _accumulate(logits, visible & is_new[None, :], rows, top, total, result, DOT, WIDE)
    for at in range(0, far * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        row, node, height, size = far_columns(
            column, choice, far_heights, plan, near, far, length, levels, bucket, CAUSAL
        )
        hidden = hidden_members(
            query, node, height, leaf_of, globals_at, window_from, window, num_globals, length, own_from,
            local_window, bucket, ROWS, COLUMNS, CAUSAL,
        )  # fmt: skip
        bias, keep = _log_counts(size, hidden, WIDE)
        logits = _logits(queries, load_rows(key_means, row, row >= 0, K, K, KP), scale, DOT, WIDE) + bias
        rows = load_rows(value_means, row, row >= 0, K, K, KP)
        top, total, result = _accumulate(logits, keep, rows, top, total, result, DOT, WIDE)
    total = tl.where(total > 0, total, 1.0)
    result = tl.where(is_real[:, None], result / total[:, None], 0.0)
    store_rows(out + (pair // H) * o_s + (pair % H) * o_h, result, query, in_chunk, o_n, K, KP)
    tl.store(lse + pair * n + query, tl.where(is_real, top + tl.log2(total), 0.0), mask=in_chunk)


@triton.jit
@no_type_check
def _add_rows(base, rows, index, valid, K: tl.constexpr, KP: tl.constexpr):
    dims = tl.arange(0, KP)
    at = index.to(tl.int64)[:, None] * K + dims[None, :]
    tl.atomic_add(base + at, rows, mask=valid[:, None] & (dims < K)[None, :], sem="relaxed")


@triton.jit
@no_type_check
def _gradients(
    logits, keep, index, valid, queries, keys, values, out_grads, lse, delta, scale,
    query_grads, key_grads, value_grads, K: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One column tile's share of all gradients; those of its rows are added where `index` says."""
    weights = tl.where(keep, tl.exp2(tl.where(keep, logits, 0.0) - lse[:, None]), 0.0)
    row_grads = tl.dot(tl.trans(weights.to(DOT)), out_grads.to(DOT), input_precision="tf32x3", out_dtype=WIDE)
    _add_rows(value_grads, row_grads, index, valid, K, KP)
    along = tl.dot(out_grads.to(DOT), tl.trans(values.to(DOT)), input_precision="tf32x3", out_dtype=WIDE)
    logit_grads = (weights * (along - delta[:, None]) * scale).to(DOT)
    row_grads = tl.dot(tl.trans(logit_grads), queries.to(DOT), input_precision="tf32x3", out_dtype=WIDE)
    _add_rows(key_grads, row_grads, index, valid, K, KP)
    return tl.dot(logit_grads, keys.to(DOT), query_grads, input_precision="tf32x3", out_dtype=WIDE)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def attend_backward(
    q, k, v, key_means, value_means, order, leaf_of, choice, far_heights, globals_at, lengths, plan, out, lse,
    out_grad, q_grad, grads,
    q_s, q_h, q_n, k_s, k_h, k_n, v_s, v_h, v_n, o_s, o_h, o_n, g_s, g_h, g_n, dq_s, dq_h, dq_n,
    n, H, pairs, chunk, tiles, near, far, num_globals, width, levels, bucket, num_nodes, local_window,
    scale, logit_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile's queries, and its share of those of keys, values and means, added to `grads`.

    Rows of `grads` are [positions | nodes], of keys and then of values. Grid: (chunks x tiles, sequences x heads).
    """
    pair, length, chunk_number, query, in_chunk, own_from, window_from, window, is_live = _tile(
        lengths, n, H, chunk, tiles, bucket, local_window, ROWS, CAUSAL
    )
    k += (pair // H) * k_s + (pair % H) * k_h
    v += (pair // H) * v_s + (pair % H) * v_h
    key_means += pair * num_nodes * K
    value_means += pair * num_nodes * K
    order += pair * n
    leaf_of += pair * n
    globals_at += (pair // H) * num_globals
    choice += (pair * (tl.num_programs(0) // tiles) + chunk_number) * (near + far)
    key_grads = grads + pair * (n + num_nodes) * K
    value_grads = grads + (pairs + pair) * (n + num_nodes) * K
    is_real = in_chunk & (query < length)
    queries = load_rows(q + (pair // H) * q_s + (pair % H) * q_h, query, is_real, q_n, K, KP)
    out_grads = load_rows(out_grad + (pair // H) * g_s + (pair % H) * g_h, query, is_real, g_n, K, KP)
    outputs = load_rows(out + (pair // H) * o_s + (pair % H) * o_h, query, is_real, o_n, K, KP)
    delta = tl.sum(out_grads.to(WIDE) * outputs.to(WIDE), 1)
    log_sum = tl.load(lse + pair * n + query, mask=is_real, other=0.0)
    result = tl.zeros([ROWS, KP], WIDE)
    for at in range(0, near * width * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        position, valid = near_columns(column, choice, order, length, near, width, levels, bucket, CAUSAL)
        keys = load_rows(k, position, valid, k_n, K, KP)
        values = load_rows(v, position, valid, v_n, K, KP)
        logits = _logits(queries, keys, logit_scale, DOT, WIDE)
        result = _gradients(
            logits, is_real[:, None] & valid[None, :], position, valid, queries, keys, values, out_grads, log_sum,
            delta, scale, result, key_grads, value_grads, K, KP, DOT, WIDE,
        )  # fmt: skip
    for at in range(0, (window + num_globals) * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        position, is_window, valid = extra_columns(column, globals_at, window_from, window, num_globals, length)
        visible = extra_visible(query, position, is_window, valid, own_from, local_window, CAUSAL)
        is_new = outside_near(extra_leaf(position, valid, leaf_of, bucket, CAUSAL), choice, near)
        keys = load_rows(k, position, is_new, k_n, K, KP)
        values = load_rows(v, position, is_new, v_n, K, KP)
        logits = _logits(queries, keys, logit_scale, DOT, WIDE)
        result = _gradients(
            logits, visible & is_real[:, None] & is_new[None, :], position, is_new, queries, keys, values, out_grads,
            log_sum, delta, scale, result, key_grads, value_grads, K, KP, DOT, WIDE,
        )  # fmt: skip
    for at in range(0, far * is_live, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        row, node, height, size = far_columns(
            column, choice, far_heights, plan, near, far, length, levels, bucket, CAUSAL
        )
        hidden = hidden_members(
            query, node, height, leaf_of, globals_at, window_from, window, num_globals, length, own_from,
            local_window, bucket, ROWS, COLUMNS, CAUSAL,
        )  # fmt: skip
        bias, keep = _log_counts(size, hidden, WIDE)
        keys = load_rows(key_means, row, row >= 0, K, K, KP)
        values = load_rows(value_means, row, row >= 0, K, K, KP)
        logits = _logits(queries, keys, logit_scale, DOT, WIDE) + bias
        result = _gradients(
            logits, keep & is_real[:, None], n + row, row >= 0, queries, keys, values, out_grads, log_sum, delta, scale,
            result, key_grads, value_grads, K, KP, DOT, WIDE,
        )  # fmt: skip
    store_rows(q_grad + (pair // H) * dq_s + (pair % H) * dq_h, result, query, in_chunk, dq_n, K, KP)
