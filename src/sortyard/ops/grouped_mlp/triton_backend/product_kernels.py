"""Products of routed rows with their experts' matrices, one tile of one expert's rows a program."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.grouped_mlp.triton_backend.activation_kernels import activate
from sortyard.ops.grouped_mlp.triton_backend.tile_kernels import (
    expert_run,
    find_expert,
    find_rows,
    load_bias,
    load_tile,
    multiply_rows,
    store_tile,
)


@triton.jit
@no_type_check
def expand(
    x, tokens, ends, up, up_bias, before, inner, E,
    D: tl.constexpr, F: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
    DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Inner values of a tile of copies: tokens gathered, multiplied, activated. Grid: tiles x columns of `up`.

    A gated tile holds the gate's and the value's columns side by side, so that one product gives both, and a thread
    finds both in its registers. KEEP also stores what the activation saw.
    """
    UP: tl.constexpr = 2 * F if GATED else F
    WIDTH: tl.constexpr = COLUMNS // 2 if GATED else COLUMNS
    blocks = tl.cdiv(F, WIDTH)
    block = tl.program_id(0) % blocks
    expert, tile = find_expert(ends, tl.program_id(0) // blocks, E, EP, ROWS)
    if expert >= E:
        return
    row, has_row = find_rows(ends, expert, tile, ROWS)
    token = tl.load(tokens + row, mask=has_row, other=0)
    lane = tl.arange(0, COLUMNS)
    column = block * WIDTH + (lane // 2 if GATED else lane)
    matrix_row = column + (lane % 2) * F if GATED else column
    total = multiply_rows(
        x, token, has_row, up + expert.to(tl.int64) * UP * D, matrix_row, column < F,
        tl.zeros([ROWS, COLUMNS], WIDE), D, UP, DEPTH, False, DOT, WIDE,
    )  # fmt: skip
    if up_bias is not None:
        total += load_bias(up_bias, expert, matrix_row, column < F, UP, WIDE)
    column = block * WIDTH + tl.arange(0, WIDTH)
    if GATED:
        gate, value = tl.split(tl.reshape(total, [ROWS, WIDTH, 2]))
        result = activate(gate, ACTIVATION)[0] * value
        if KEEP:
            store_tile(before, gate, row, has_row, column, column < F, UP)
            store_tile(before + F, value, row, has_row, column, column < F, UP)
    else:
        result = activate(total, ACTIVATION)[0]
        if KEEP:
            store_tile(before, total, row, has_row, column, column < F, UP)
    store_tile(inner, result, row, has_row, column, column < F, F)


@triton.jit
@no_type_check
def bring_home(
    rows, slots, ends, matrix, bias, weights, copies, E,
    IN: tl.constexpr, OUT: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, FLIPPED: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sorted rows times their expert's matrix, plus bias, times weight, each written to its own slot.

    Matrices lie as [OUT, IN], or FLIPPED as [IN, OUT]; bias and weights may be missing. Grid: tiles x columns.
    """
    blocks = tl.cdiv(OUT, COLUMNS)
    expert, tile = find_expert(ends, tl.program_id(0) // blocks, E, EP, ROWS)
    if expert >= E:
        return
    row, has_row = find_rows(ends, expert, tile, ROWS)
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    has_column = column < OUT
    total = multiply_rows(
        rows, row, has_row, matrix + expert.to(tl.int64) * IN * OUT, column, has_column,
        tl.zeros([ROWS, COLUMNS], WIDE), IN, OUT, DEPTH, FLIPPED, DOT, WIDE,
    )  # fmt: skip
    slot = tl.load(slots + row, mask=has_row, other=0)
    if bias is not None:
        total += load_bias(bias, expert, column, has_column, OUT, WIDE)
    if weights is not None:
        total *= tl.load(weights + slot, mask=has_row, other=0.0).to(WIDE)[:, None]
    store_tile(copies, total, slot, has_row, column, has_column, OUT)


@triton.jit
@no_type_check
def sum_copies(
    copies, experts, out, N, E,
    D: tl.constexpr, PER_TOKEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Each token's copies added up in a fixed order; slots that nobody has are not read. Grid: (tokens, columns)."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([TOKENS, COLUMNS], WIDE)
    for choice in tl.static_range(PER_TOKEN):
        slot = token.to(tl.int64) * PER_TOKEN + choice
        is_routed = tl.load(experts + slot, mask=token < N, other=E) < E
        total += load_tile(copies, slot, is_routed, column, column < D, D).to(WIDE)
    store_tile(out, total, token, token < N, column, column < D, D)


@triton.jit
@no_type_check
def _dot_with_bias(base, row, has_row, bias, width: tl.constexpr, DEPTH: tl.constexpr, total, WIDE: tl.constexpr):
    """Rows times one vector, added to `total`."""
    for at in range(0, width, DEPTH):
        depth = at + tl.arange(0, DEPTH)
        values = load_tile(base, row, has_row, depth, depth < width, width).to(WIDE)
        total += tl.sum(values * tl.load(bias + depth, mask=depth < width, other=0.0).to(WIDE)[None, :], 1)
    return total


@triton.jit
@no_type_check
def expand_backward(
    out_grad, tokens, slots, ends, down, down_bias, weights, before, before_grad, weighted, weight_parts, R, E,
    D: tl.constexpr, F: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of what the activation saw, of a tile of copies. Grid: tiles x columns of the inner width.

    `weighted` gets the inner values times the routing weight, for the gradient of `down`. `weight_parts` [columns, R]
    gets each tile's share of a routing weight's gradient, <out_grad, down inner + bias> = <down^T out_grad, inner> +
    <out_grad, bias>; the first column adds the bias.
    """
    UP: tl.constexpr = 2 * F if GATED else F
    blocks = tl.cdiv(F, COLUMNS)
    block = tl.program_id(0) % blocks
    expert, tile = find_expert(ends, tl.program_id(0) // blocks, E, EP, ROWS)
    if expert >= E:
        return
    row, has_row = find_rows(ends, expert, tile, ROWS)
    token = tl.load(tokens + row, mask=has_row, other=0)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    has_column = column < F
    total = multiply_rows(
        out_grad, token, has_row, down + expert.to(tl.int64) * D * F, column, has_column,
        tl.zeros([ROWS, COLUMNS], WIDE), D, F, DEPTH, True, DOT, WIDE,
    )  # fmt: skip
    slot = tl.load(slots + row, mask=has_row, other=0)
    weight = tl.load(weights + slot, mask=has_row, other=0.0).to(WIDE)
    inner, slope = activate(load_tile(before, row, has_row, column, has_column, UP).to(WIDE), ACTIVATION)
    if GATED:
        value = load_tile(before + F, row, has_row, column, has_column, UP).to(WIDE)
        value_grad = total * weight[:, None] * inner
        store_tile(before_grad + F, value_grad, row, has_row, column, has_column, UP)
        slope *= value
        inner *= value
    store_tile(before_grad, total * weight[:, None] * slope, row, has_row, column, has_column, UP)
    store_tile(weighted, inner * weight[:, None], row, has_row, column, has_column, F)
    part = tl.sum(total * inner, 1)
    if down_bias is not None and block == 0:
        part = _dot_with_bias(
            out_grad, token, has_row, down_bias + expert.to(tl.int64) * D, D, DEPTH, part, WIDE
        )  # fmt: skip
    tl.store(weight_parts + block.to(tl.int64) * R + row, part, mask=has_row)


@triton.jit
@no_type_check
def add_outer(
    left, right, tokens, slots, ends, weights, matrix_grad, bias_grad,
    OUT: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    LEFT_BY_TOKEN: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of an expert's [OUT, IN] matrix: the sum over its rows of left (x) right; zeros without rows.

    One side lies by token and is gathered, the other in sorted order. The bias's gradient is the sum of left, times
    the routing weight where left lies by token; the programs of the first columns add it up.
    Grid: experts x rows x columns.
    """
    across = tl.cdiv(IN, COLUMNS)
    tiles = tl.cdiv(OUT, ROWS) * across
    expert, block = tl.program_id(0) // tiles, tl.program_id(0) % across
    out = tl.program_id(0) % tiles // across * ROWS + tl.arange(0, ROWS)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    start, end = expert_run(ends, expert)
    total = tl.zeros([ROWS, COLUMNS], WIDE)
    bias_total = tl.zeros([ROWS], WIDE)
    for at in range(start, end, DEPTH):
        row = at + tl.arange(0, DEPTH)
        has_row = row < end
        token = tl.load(tokens + row, mask=has_row, other=0)
        ours = load_tile(left, token if LEFT_BY_TOKEN else row, has_row, out, out < OUT, OUT)
        theirs = load_tile(right, row if LEFT_BY_TOKEN else token, has_row, column, column < IN, IN)
        total = tl.dot(tl.trans(ours.to(DOT)), theirs.to(DOT), total, input_precision="tf32x3", out_dtype=WIDE)
        if bias_grad is not None and block == 0:
            summand = ours.to(WIDE)
            if LEFT_BY_TOKEN:
                slot = tl.load(slots + row, mask=has_row, other=0)
                summand *= tl.load(weights + slot, mask=has_row, other=0.0).to(WIDE)[:, None]
            bias_total += tl.sum(summand, 0)
    store_tile(matrix_grad + expert.to(tl.int64) * OUT * IN, total, out, out < OUT, column, column < IN, IN)
    if bias_grad is not None and block == 0:
        tl.store(bias_grad + expert.to(tl.int64) * OUT + out, bias_total.to(bias_grad.dtype.element_ty), mask=out < OUT)
