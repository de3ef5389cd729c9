"""Pieces that the products share: a tile's expert and rows, tiles of memory, rows times a matrix.

`no_type_check` keeps the import hook that checks shapes in tests away from functions that Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def expert_run(ends, expert):
    """First sorted row of an expert, and the row behind its last."""
    return tl.load(ends + expert - 1, mask=expert > 0, other=0), tl.load(ends + expert)


@triton.jit
@no_type_check
def find_expert(ends, tile, E, EP: tl.constexpr, ROWS: tl.constexpr):
    """Expert of a tile, and the tile's number among that expert's; an expert of E or more lies behind the last tile."""
    number = tl.arange(0, EP)
    end = tl.load(ends + number, mask=number < E, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < E), other=0)
    tiles = tl.cdiv(end - start, ROWS)
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    return expert, tile - tl.sum(tl.where(number < expert, tiles, 0), 0)


@triton.jit
@no_type_check
def find_rows(ends, expert, tile, ROWS: tl.constexpr):
    """Sorted rows of an expert's tile, and which of them are its own."""
    start, end = expert_run(ends, expert)
    row = start + tile * ROWS + tl.arange(0, ROWS)
    return row, row < end


@triton.jit
@no_type_check
def load_tile(base, row, has_row, column, has_column, width):
    """Values at (row, column) of rows of `width`; zeros where either is missing."""
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(base + at, mask=has_row[:, None] & has_column[None, :], other=0.0)


@triton.jit
@no_type_check
def store_tile(base, values, row, has_row, column, has_column, width):
    """Write values to (row, column) of rows of `width`."""
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(base + at, values.to(base.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])


@triton.jit
@no_type_check
def load_bias(bias, expert, column, has_column, width, WIDE: tl.constexpr):
    """An expert's biases of some columns, as a row."""
    return tl.load(bias + expert.to(tl.int64) * width + column, mask=has_column, other=0.0).to(WIDE)[None, :]


@triton.jit
@no_type_check
def multiply_rows(
    base, row, has_row, matrix, column, has_column, total,
    IN: tl.constexpr, OUT: tl.constexpr, DEPTH: tl.constexpr, FLIPPED: tl.constexpr,
    DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows of `base` times columns of a matrix, which lies as [OUT, IN], or FLIPPED as [IN, OUT]; added to `total`."""
    for at in range(0, IN, DEPTH):
        depth = at + tl.arange(0, DEPTH)
        has_depth = depth < IN
        left = load_tile(base, row, has_row, depth, has_depth, IN)
        if FLIPPED:
            right = load_tile(matrix, depth, has_depth, column, has_column, OUT)
        else:
            right = tl.trans(load_tile(matrix, column, has_column, depth, has_depth, IN))
        # Three TF32 products keep float32's precision; shorter types ignore the setting.
        total = tl.dot(left.to(DOT), right.to(DOT), total, input_precision="tf32x3", out_dtype=WIDE)
    return total


INTERPRETED = not isinstance(load_tile, triton.JITFunction)
