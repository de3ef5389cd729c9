"""How a chunk of queries goes down the tree: one program a chunk."""

from typing import no_type_check

import triton
import triton.language as tl

from sortyard.ops.bucket_attention.triton_backend.row_kernels import BY_LENGTH, load_rows
from sortyard.ops.bucket_attention.triton_backend.spread_kernels import least_spread


@triton.jit
@no_type_check
def _mean_query(
    queries, first, last, stride, ROWS: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr
):
    """The mean of the queries first ... last - 1."""
    total = tl.zeros([ROWS, KP], WIDE)
    for at in range(first, last, ROWS):
        position = at + tl.arange(0, ROWS)
        total += load_rows(queries, position, position < last, stride, K, KP).to(WIDE)
    return tl.sum(total, 0) / (last - first).to(WIDE)


@triton.jit
@no_type_check
def _candidates(node, rank, lane, kept, past, CAUSAL: tl.constexpr):
    """Children of the kept nodes, and in causal use the past child of the node astride the border; -1 is no node."""
    parent = tl.sum(tl.where(rank[None, :] == (lane // 2)[:, None], node[None, :], 0), 1)
    children = tl.where((lane < 2 * kept) & (parent >= 0), 2 * parent + lane % 2, -1)
    if CAUSAL:
        sibling = tl.where(past % 2 == 1, past - 1, -1)
        children = tl.where(lane == 2 * kept, sibling, children)
    return children


@triton.jit
@no_type_check
def _ranks(node, score, lane):
    """Each candidate's place by score, the lower node first in a tie, no node last."""
    score = tl.where((node >= 0) & (score == score), score, -float("inf"))
    tie = tl.where(node >= 0, node, (1 << 30) + lane)
    is_better = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (tie[None, :] < tie[:, None]))
    return tl.sum(is_better.to(tl.int32), 1)


@triton.jit(do_not_specialize=BY_LENGTH)
@no_type_check
def choose_nodes(
    queries, means, spreads, lengths, plan, choice, q_s, q_h, q_n, H, chunk, bucket, heights, num_nodes, near, columns,
    LANES: tl.constexpr, ROWS: tl.constexpr, CAUSAL: tl.constexpr, SPREADS: tl.constexpr,
    SCALE: tl.constexpr, TINY: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Near leaves, then rows of the summaries in the table of means, of one chunk; -1 is none.

    With SPREADS the log of a node's spread adds to its mean key's logit.

    Grid: (chunks, sequences x heads).
    """
    pair = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + pair // H)
    start = tl.program_id(0) * chunk
    queries += (pair // H) * q_s + (pair % H) * q_h
    means += pair * num_nodes * K
    choice += (pair * tl.num_programs(0) + tl.program_id(0)) * columns
    first, last = start, tl.minimum(start + chunk, length)
    if CAUSAL:
        first, last = tl.maximum(start - chunk + 1, 0), tl.minimum(start + 1, length)
    # A chunk of pads chooses by one query of the sequence, and nobody reads what it chose.
    mean = _mean_query(queries, tl.minimum(first, last - 1), last, q_n, ROWS, K, KP, WIDE)
    if SPREADS:
        spreads += pair * num_nodes
        least = least_spread(means, spreads, plan, heights, length, TINY, K, KP, WIDE)
    lane = tl.arange(0, LANES)
    node, rank, kept = lane * 0, lane, 1
    if CAUSAL:
        node, kept = node - 1, 0
    for step in range(heights):
        height = heights - 1 - step
        row = plan + 5 * height
        first_row, nodes, count = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        node = _candidates(node, rank, lane, kept, (start // bucket) >> height, CAUSAL)
        node = tl.minimum(node, nodes - 1)
        kept = tl.load(row + 3)
        # Where all candidates stay open nothing is read, and all score 0.
        is_scored = node >= tl.where(count > kept, 0, nodes)
        rows = load_rows(means, first_row + node, is_scored, K, K, KP).to(WIDE)
        score = tl.sum(rows * mean[None, :], 1)
        if SPREADS:
            spread = tl.load(spreads + first_row + node, mask=is_scored, other=1.0)
            score = score * SCALE + tl.log(tl.maximum(spread, least))
        rank = _ranks(node, score, lane)
        far = tl.where(node >= 0, first_row + node, -1)
        tl.store(
            choice + near + tl.load(row + 4) + rank - kept, far, mask=(rank >= kept) & (rank < count)
        )  # fmt: skip
    tl.store(choice + rank, node, mask=rank < near)
