"""Pieces that several kernels share: rows by position, and where a node's keys lie.

`no_type_check` keeps the import hook that checks shapes in tests away from functions that Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Arguments that follow the sequences' lengths and so change from batch to batch: a kernel is compiled once for all of
# them, where Triton would make one for values of 1, one for multiples of 16 and one for the rest, in every combination.
BY_LENGTH = (
    "n", "H", "pairs", "level", "first_level", "levels", "first_height", "heights", "count", "num_nodes", "bucket",
    "width", "chunk", "tiles", "near", "far", "columns", "num_globals", "local_window",
)  # fmt: skip


@triton.jit
@no_type_check
def load_rows(base, positions, valid, stride, K: tl.constexpr, KP: tl.constexpr):
    """Rows [positions, KP] of one head; zeros where not valid and beyond K."""
    dims = tl.arange(0, KP)
    at = positions.to(tl.int64)[:, None] * stride + dims[None, :]
    return tl.load(base + at, mask=valid[:, None] & (dims < K)[None, :], other=0.0)


@triton.jit
@no_type_check
def store_rows(base, rows, positions, valid, stride, K: tl.constexpr, KP: tl.constexpr):
    """Write rows [positions, KP] of one head."""
    dims = tl.arange(0, KP)
    at = positions.to(tl.int64)[:, None] * stride + dims[None, :]
    tl.store(base + at, rows.to(base.dtype.element_ty), mask=valid[:, None] & (dims < K)[None, :])


@triton.jit
@no_type_check
def leaf_start(leaf, length, levels, bucket, CAUSAL: tl.constexpr):
    """Rank of a leaf's first key; that of a leaf behind the last one is the sequence's end."""
    leaf = leaf.to(tl.int64)
    return tl.minimum(leaf * bucket if CAUSAL else (leaf * length) >> levels, length)


@triton.jit
@no_type_check
def node_size(node, height, length, levels, bucket, CAUSAL: tl.constexpr):
    """Keys of a node; a block of positions counts only where it is full."""
    node = node.to(tl.int64)
    if CAUSAL:
        return (node * 0 + bucket) << height
    return (((node + 1) * length) >> (levels - height)) - ((node * length) >> (levels - height))


INTERPRETED = not isinstance(load_rows, triton.JITFunction)
