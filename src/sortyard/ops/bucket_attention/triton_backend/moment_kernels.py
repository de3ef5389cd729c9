"""What the queries see of each direction: their moments M, and M times the direction of a split."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.row_kernels import BY_LENGTH


@triton.jit
@no_type_check
def _load_columns(queries, positions, valid, stride, columns, K: tl.constexpr):
    at = positions[:, None] * stride + columns[None, :]
    return tl.load(queries + at, mask=valid[:, None] & (columns < K)[None, :], other=0.0)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def read_moments(
    queries, lengths, moments, q_s, q_h, q_n, H,
    SAMPLES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of M, the mean of q q^T over at most SAMPLES queries spread evenly over each sequence.

    Grid: (KP / BLOCK, sequences x heads).
    """
    pair, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK
    length = tl.load(lengths + pair // H).to(tl.int64)
    samples = tl.minimum(length, SAMPLES)
    queries += (pair // H) * q_s + (pair % H) * q_h
    total = tl.zeros([BLOCK, KP], WIDE)
    for at in range(0, samples, ROWS):
        sample = at + tl.arange(0, ROWS).to(tl.int64)
        position = ((2 * sample + 1) * length) // (2 * samples)
        left = _load_columns(queries, position, sample < samples, q_n, first + tl.arange(0, BLOCK), K)
        right = _load_columns(queries, position, sample < samples, q_n, tl.arange(0, KP), K)
        total = tl.dot(tl.trans(left.to(DOT)), right.to(DOT), total, input_precision="tf32x3", out_dtype=WIDE)
    out = moments + (pair * KP + first + tl.arange(0, BLOCK))[:, None] * KP + tl.arange(0, KP)[None, :]
    tl.store(out, total / samples.to(WIDE))


@triton.jit
@no_type_check
def weigh(directions, moments, NODES: tl.constexpr, CHUNK: tl.constexpr, KP: tl.constexpr):
    """M d for the directions [NODES, KP] of some nodes, CHUNK rows of M at a time; M is symmetric."""
    parts = tl.reshape(directions, [NODES, KP // CHUNK, CHUNK])
    number = tl.arange(0, KP // CHUNK)[None, :, None]
    total = tl.zeros([NODES, KP], directions.dtype)
    for chunk in range(KP // CHUNK):
        part = tl.sum(tl.where(number == chunk, parts, 0.0), 1)
        row = chunk * CHUNK + tl.arange(0, CHUNK)
        rows = tl.load(moments + row[:, None] * KP + tl.arange(0, KP)[None, :])
        total += tl.sum(part[:, :, None] * rows[None, :, :], 1)
    return total


@triton.jit
@no_type_check
def weigh_one(direction, moments, KP: tl.constexpr):
    """M d for one direction [KP]."""
    CHUNK: tl.constexpr = 32 if KP > 32 else KP
    return tl.reshape(weigh(direction[None, :], moments, 1, CHUNK, KP), [KP])
