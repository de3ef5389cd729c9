"""The LSH tree of one sequence and the descent of its query chunks, as functions of an ONNX graph."""

import math

from onnxscript import FLOAT, INT64, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

DOMAIN = Opset("sortyard", 1)
INFINITY = math.inf


@script(DOMAIN, default_opset=op)
def take(x: FLOAT[...], index: INT64[...]) -> FLOAT[...]:
    """Rows of each head: x [H, n, K] or [H, n], index [H, ...]; the result is [H, ..., K] or [H, ...]."""
    return op.GatherND(x, op.Unsqueeze(index, [-1]), batch_dims=1)


@script(DOMAIN, default_opset=op)
def sort_rising(x: INT64[...]) -> INT64[...]:
    """The last axis in rising order; of equals the first one comes first."""
    values, _ = op.TopK(x, op.Shape(x, start=-1), axis=-1, largest=0, sorted=1)
    return values


@script(DOMAIN, default_opset=op)
def node_sizes(n: INT64[...], level: INT64[...]) -> INT64[...]:
    """Keys of each node of a level: ((j + 1) n >> level) - (j n >> level)."""
    nodes = op.Pow(2, level)
    bounds = op.Range(0, nodes + 1, 1) * n / nodes
    return bounds[1:] - bounds[:-1]


@script(DOMAIN, default_opset=op)
def query_moments(q: FLOAT[...], n: INT64[...], by_queries: int) -> FLOAT[...]:
    """Mean outer product [H, K, K] of at most 256 queries, evenly spread; the identity unless `by_queries`."""
    width = op.Shape(q, start=2)
    if by_queries == 1:
        count = op.Min(n, 256)
        at = op.Min((2 * op.Range(0, count, 1) + 1) * n / (2 * count), n - 1)
        rows = op.Gather(q, at, axis=1)
        moments = op.MatMul(op.Transpose(rows, perm=[0, 2, 1]), rows) / op.Cast(count, to=1)
    else:
        moments = op.Unsqueeze(op.EyeLike(op.ConstantOfShape(op.Concat(width, width, axis=0)), dtype=1), [0])
    return moments


@script(DOMAIN, default_opset=op)
def turn(
    projection: FLOAT[...], rows: FLOAT[...], used: FLOAT[...], sizes: FLOAT[...], moments: FLOAT[...], power_steps: int
) -> FLOAT[...]:
    """Projections [H, nodes, slots] on the directions that power steps turn towards the largest spread.

    `rows` [H, nodes, slots, K] are centred, `used` [nodes, slots] is 1 at slots that hold a key, `sizes` [nodes, 1].
    """
    for _ in range(power_steps):
        held = projection * used
        spread = (held - op.ReduceSum(held, [-1], keepdims=1) / sizes) * used
        direction = op.MatMul(op.MatMul(op.Unsqueeze(spread, [2]), rows), op.Unsqueeze(moments, [1]))
        norm = op.Max(op.ReduceL2(direction, [-1], keepdims=1), 1e-12)
        projection = op.Squeeze(op.MatMul(direction / norm, op.Transpose(rows, perm=[0, 1, 3, 2])), [2])
    return projection


@script(DOMAIN, default_opset=op)
def halve(order: INT64[...], projection: FLOAT[...], used: FLOAT[...], n: INT64[...], level: INT64[...]) -> INT64[...]:
    """Move the lower half of every node's slots left; both halves keep their order.

    Unused slots stand at the end of a node; as many of them count as lowest as the left half has room for.
    """
    slots = op.Shape(projection, start=2)
    half = slots / 2
    size = op.Unsqueeze(node_sizes(n, level), [1])
    left = op.Unsqueeze(node_sizes(n, level + 1)[::2], [1])
    lowest = op.Range(0, op.Squeeze(slots), 1) < size + half - left
    fill = op.Where(lowest, -INFINITY, INFINITY)
    value = op.Where(used > 0.0, projection, fill)
    _, ranked = op.TopK(value, slots, axis=-1, largest=0, sorted=1)
    halves = op.Reshape(ranked, op.Concat([0, 0, 2], half, axis=0))
    places = op.Reshape(sort_rising(halves), op.Shape(projection))
    nodes = op.Reshape(order, op.Shape(projection))
    return op.Reshape(op.GatherElements(nodes, places, axis=-1), op.Shape(order))


@script(DOMAIN, default_opset=op)
def grow_tree(
    q: FLOAT[...],
    k: FLOAT[...],
    n: INT64[...],
    levels: INT64[...],
    directions: FLOAT[...],
    power_steps: int,
    by_queries: int,
) -> INT64[...]:
    """The position in every slot of 2^levels leaves of equal width, [H, slots]; q and k are [H, n, K]."""
    nodes = op.Pow(2, levels)
    slots = (n + nodes - 1) / nodes * nodes
    place = op.Range(0, slots, 1)
    heads = op.Shape(k, start=0, end=1)
    order = op.Expand(op.Where(place < n, place, 0), op.Concat(heads, op.Unsqueeze(slots, [0]), axis=0))
    moments = query_moments(q, n, by_queries=by_queries)
    centred = k - op.ReduceMean(k, [1], keepdims=1)
    starts = op.MatMul(centred, op.Transpose(directions, perm=[1, 0]))  # [H, n, all levels]
    for level in range(levels):
        shape = op.Concat([0], op.Unsqueeze(op.Pow(2, level), [0]), [-1], axis=0)
        sizes = op.Unsqueeze(node_sizes(n, level), [1])
        used = op.Cast(op.Range(0, slots / op.Pow(2, level), 1) < sizes, to=1)
        projection = op.Reshape(take(op.Gather(starts, level, axis=2), order), shape)
        rows = op.Reshape(take(centred, order), op.Concat(shape, op.Shape(k, start=2), axis=0))
        projection = turn(projection, rows, used, op.Cast(sizes, to=1), moments, power_steps=power_steps)
        order = halve(order, projection, used, n, level)
    return order


@script(DOMAIN, default_opset=op)
def mark_used(order: INT64[...], n: INT64[...], levels: INT64[...]) -> FLOAT[...]:
    """1 at the slots of the leaves that hold a key, [slots, 1]: the first ones of each leaf."""
    width = op.Squeeze(op.Shape(order, start=1)) / op.Pow(2, levels)
    held = op.Range(0, width, 1) < op.Unsqueeze(node_sizes(n, levels), [1])
    return op.Reshape(op.Cast(held, to=1), [-1, 1])
