"""How a chunk of queries goes down the tree, as functions of an ONNX graph.

Nodes go by their place in a heap: the root is 1, the children of h are 2 h and 2 h + 1; row h - 1 of a table is node h.
"""

from onnxscript import FLOAT, INT64, script
from onnxscript import opset18 as op

from sortyard.interop.onnx.tree import DOMAIN, node_sizes, sort_rising, take

TINY = 2.0**-126  # the smallest normal float32
ALIKE = 1e-6  # of the whole sequence's spread: the least that a node counts with


@script(DOMAIN, default_opset=op)
def sum_up(leaves: FLOAT[...], parents: FLOAT[...], levels: INT64[...]) -> FLOAT[...]:
    """Sums over all nodes [H, 2^(levels + 1) - 1, K] of the leaves' rows, and the parents' own [H, 2^levels - 1, K]."""
    table = leaves
    for number in range(levels):
        nodes = op.Pow(2, levels - number - 1)
        pairs = op.Reshape(table[:, : 2 * nodes], op.Concat([0], op.Unsqueeze(nodes, [0]), [2, -1], axis=0))
        own = parents[:, nodes - 1 : 2 * nodes - 1]
        table = op.Concat(op.ReduceSum(pairs, [2], keepdims=0) + own, table, axis=1)
    return table


@script(DOMAIN, default_opset=op)
def count_nodes(n: INT64[...], levels: INT64[...]) -> tuple[FLOAT[...], FLOAT[...]]:
    """Keys and leaves of every node, [1, nodes, 1] each."""
    sizes = op.Cast(op.Unsqueeze(node_sizes(n, levels), [0, 2]), to=1)
    leaves = sizes * 0.0 + 1.0
    none = op.Concat(leaves, leaves, axis=2)[:, 1:] * 0.0
    counts = sum_up(op.Concat(sizes, leaves, axis=2), none, levels)
    return counts[:, :, :1], counts[:, :, 1:]


@script(DOMAIN, default_opset=op)
def split_leaves(rows: FLOAT[...], used: FLOAT[...], levels: INT64[...]) -> FLOAT[...]:
    """Rows [H, slots, K] by leaf, [H, leaves, width, K]; zeros where `used` [slots, 1] is 0."""
    leaves = op.Unsqueeze(op.Pow(2, levels), [0])
    return op.Reshape(rows * used, op.Concat([0], leaves, [-1], op.Shape(rows, start=2), axis=0))


@script(DOMAIN, default_opset=op)
def node_means(rows: FLOAT[...], used: FLOAT[...], sizes: FLOAT[...], levels: INT64[...]) -> FLOAT[...]:
    """Means of the rows [H, slots, K] that each node holds."""
    leaves = op.ReduceSum(split_leaves(rows, used, levels), [2], keepdims=0)
    return sum_up(leaves, leaves[:, 1:] * 0.0, levels) / sizes


@script(DOMAIN, default_opset=op)
def node_spreads(
    rows: FLOAT[...], means: FLOAT[...], used: FLOAT[...], sizes: FLOAT[...], levels: INT64[...]
) -> FLOAT[...]:
    """Mean squared distance [H, nodes, 1] of each node's rows to their mean, not below a millionth of the root's.

    A node's total is that of its children and of their means about its own: nothing is lost to cancellation.
    """
    first = op.Pow(2, levels) - 1
    mask = op.Reshape(used, op.Concat(op.Unsqueeze(first + 1, [0]), [-1, 1], axis=0))
    away = (split_leaves(rows, used, levels) - op.Unsqueeze(means[:, first:], [2])) * mask
    leaves = op.Unsqueeze(op.ReduceSumSquare(away, [2, 3], keepdims=0), [2])
    gaps = op.ReduceSumSquare(means[:, 1::2] - means[:, 2::2], [2], keepdims=1)
    left = sizes[:, 1::2]
    right = sizes[:, 2::2]
    spreads = sum_up(leaves, gaps * left * right / (left + right), levels) / sizes
    return op.Max(spreads, op.Max(spreads[:, :1] * ALIKE, TINY))


@script(DOMAIN, default_opset=op)
def open_children(
    cover: INT64[...], chosen_by: FLOAT[...], means: FLOAT[...], bonus: FLOAT[...], keep: INT64[...]
) -> INT64[...]:
    """The cover with its open nodes' children in their place: all but the best `keep` of them closed."""
    closed = op.ReduceSum(op.Cast(cover[0, 0] < 0, to=7), keepdims=0)
    parents = op.Unsqueeze(cover[:, :, closed:], [3])
    children = op.Reshape(op.Concat(2 * parents, 2 * parents + 1, axis=3), [0, 0, -1])
    logits = op.Squeeze(op.MatMul(take(means, children - 1), op.Unsqueeze(chosen_by, [3])), [3])
    scale = op.Sqrt(op.Cast(op.Shape(means, start=2), to=1))
    scores = logits / scale + take(op.Squeeze(bonus, [2]), children - 1)
    _, ranked = op.TopK(scores, op.Shape(scores, start=2), axis=-1, largest=1, sorted=1)
    kept = sort_rising(op.GatherElements(children, ranked[:, :, :keep], axis=2))
    far = op.GatherElements(children, ranked[:, :, keep:], axis=2)
    return op.Concat(cover[:, :, :closed], -far, kept, axis=2)


@script(DOMAIN, default_opset=op)
def descend(
    chosen_by: FLOAT[...], means: FLOAT[...], bonus: FLOAT[...], levels: INT64[...], near: INT64[...], beam: INT64[...]
) -> INT64[...]:
    """Nodes [H, C, M] that share out the leaves among them: first the summarised ones, negative, then near leaves.

    A chunk with the mean query `chosen_by` [H, C, K] ranks nodes by its logit for their means [H, nodes, K], plus
    the bonus [H, nodes, 1]; of equals the lower one comes first.
    """
    cover = op.Expand(1, op.Concat(op.Shape(chosen_by, end=2), [1], axis=0))
    for level in range(levels):
        keep = op.Where(level + 1 == levels, near, beam)
        cover = open_children(cover, chosen_by, means, bonus, keep)
    return cover
