"""Bucket attention with a tree, as functions of an ONNX graph; `ops/bucket_attention` derives it."""

from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset18 as op

from sortyard.interop.onnx.descent import count_nodes, descend, node_means, node_spreads
from sortyard.interop.onnx.tree import DOMAIN, grow_tree, mark_used, take

FAR = -1e30  # what is added to the logit of a pad: its weight is 0, and a row of pads has a softmax


@script(DOMAIN, default_opset=op)
def attend_columns(q: FLOAT[...], k: FLOAT[...], v: FLOAT[...], bias: FLOAT[...]) -> FLOAT[...]:
    """Softmax attention [..., c, K] of queries [..., c, K] over keys [..., E, K]."""
    scale = op.Sqrt(op.Cast(op.Shape(q, start=-1), to=1))
    keys = op.Einsum(k, equation="...ek->...ke")
    return op.MatMul(op.Softmax(op.MatMul(q, keys) / scale + bias, axis=-1), v)


@script(DOMAIN, default_opset=op)
def cut_chunks(q: FLOAT[...], n: INT64[...], chunk: int) -> tuple[FLOAT[...], FLOAT[...]]:
    """Chunks [H, C, chunk, K] of queries [H, n, K], zeros behind the last one, and their means [H, C, K]."""
    starts = op.Range(0, n, chunk)
    missing = op.Size(starts) * chunk - n
    padded = op.Pad(q, op.Concat([0, 0, 0, 0], op.Unsqueeze(missing, [0]), [0], axis=0))
    chunks = op.Reshape(padded, op.Concat([0], op.Shape(starts), [-1], op.Shape(q, start=2), axis=0))
    sizes = op.Unsqueeze(op.Cast(op.Min(n - starts, chunk), to=1), [1])
    return chunks, op.ReduceSum(chunks, [2], keepdims=0) / sizes


@script(DOMAIN, default_opset=op)
def open_window(n: INT64[...], chunk: int, half_width: int, num_globals: int) -> tuple[INT64[...], FLOAT[...]]:
    """Positions [C, W] of each chunk's window and the global tokens, and 1 where a query reads one, [C, chunk, W].

    A global token within a query's window counts there only.
    """
    starts = op.Unsqueeze(op.Range(0, n, chunk), [1])
    window = starts + op.Range(0 - half_width, chunk + half_width, 1)
    marked = op.Range(0, op.Min(n, num_globals), 1)
    query = op.Unsqueeze(starts + op.Range(0, chunk, 1), [2])
    is_real = op.Unsqueeze(op.And(window >= 0, window < n), [1])
    around = op.And(op.Abs(query - op.Unsqueeze(window, [1])) <= half_width, is_real)
    visible = op.Concat(around, op.Abs(query - marked) > half_width, axis=2)
    everywhere = op.Expand(marked, op.Concat(op.Shape(starts, end=1), op.Shape(marked), axis=0))
    positions = op.Concat(op.Min(op.Max(window, 0), n - 1), everywhere, axis=1)
    return positions, op.Cast(visible, to=1)


@script(DOMAIN, default_opset=op)
def find_leaves(
    order: INT64[...], used: FLOAT[...], n: INT64[...], width: INT64[...], positions: INT64[...]
) -> INT64[...]:
    """The leaf [H, C, W] of each position's key; `order` [H, slots] says which position lies in a slot."""
    place = op.Where(op.Squeeze(used, [1]) > 0.0, order, n)
    slots = op.Expand(op.Range(0, op.Squeeze(op.Shape(order, start=1)), 1), op.Shape(order))
    nowhere = op.Expand(0, op.Concat(op.Shape(order, end=1), op.Unsqueeze(n + 1, [0]), axis=0))
    slot_of = op.ScatterElements(nowhere, place, slots, axis=1)
    return op.Gather(slot_of, positions, axis=1) / width


@script(DOMAIN, default_opset=op)
def weigh_columns(
    leaf: INT64[...],
    visible: FLOAT[...],
    near_used: FLOAT[...],
    near: INT64[...],
    far: INT64[...],
    far_sizes: FLOAT[...],
    far_spans: INT64[...],
    num_leaves: INT64[...],
) -> FLOAT[...]:
    """What is added to the logits [H, C, chunk, E] of [near leaves | window and global tokens | summaries].

    That is the logarithm of how many keys a column stands for. A summary stands for its keys less those that the
    query reads exactly, and a key of the window counts there only if no near leaf holds it.
    """
    of_window = op.Unsqueeze(leaf, [3])
    is_near = op.ReduceMax(op.Cast(of_window == op.Unsqueeze(near, [2]), to=1), [3], keepdims=0)
    shown = visible * op.Unsqueeze(1.0 - is_near, [2])  # [H, C, chunk, W]
    branch = (of_window + num_leaves) / op.Unsqueeze(far_spans, [2])  # the node of that many leaves above a key
    is_held = op.Cast(branch == op.Unsqueeze(far, [2]), to=1)
    counts = op.Unsqueeze(far_sizes, [2]) - op.MatMul(visible, is_held)
    rows = op.Concat(op.Shape(shown, end=3), op.Shape(near_used, start=2), axis=0)
    return op.Log(op.Concat(op.Expand(op.Unsqueeze(near_used, [2]), rows), shown, counts, axis=3))


@script(DOMAIN, default_opset=op)
def read_columns(
    order: INT64[...],
    used: FLOAT[...],
    cover: INT64[...],
    sizes: FLOAT[...],
    spans: FLOAT[...],
    n: INT64[...],
    levels: INT64[...],
    positions: INT64[...],
    visible: FLOAT[...],
) -> tuple[INT64[...], INT64[...], FLOAT[...]]:
    """Slots of the near leaves, rows of the summaries, and what is added to the logits of all columns."""
    num_leaves = op.Pow(2, levels)
    width = op.Squeeze(op.Shape(order, start=1)) / num_leaves
    closed = op.ReduceSum(op.Cast(cover[0, 0] < 0, to=7), keepdims=0)
    near = cover[:, :, closed:] - num_leaves
    far = 0 - cover[:, :, :closed]
    slots = op.Reshape(op.Unsqueeze(near * width, [3]) + op.Range(0, width, 1), [0, 0, -1])
    near_used = op.Gather(op.Squeeze(used, [1]), slots)
    far_sizes = op.Gather(op.Squeeze(sizes, [0, 2]), far - 1)
    far_spans = op.Cast(op.Gather(op.Squeeze(spans, [0, 2]), far - 1), to=7)
    leaf = find_leaves(order, used, n, width, positions)
    bias = weigh_columns(leaf, visible, near_used, near, far, far_sizes, far_spans, num_leaves)
    return slots, far - 1, bias


@script(DOMAIN, default_opset=op)
def attend_tree(
    q: FLOAT[...],
    k: FLOAT[...],
    v: FLOAT[...],
    shape: INT64[...],
    directions: FLOAT[...],
    chunk: int,
    half_width: int,
    num_globals: int,
    power_steps: int,
    by_queries: int,
    spread_coef: float,
) -> FLOAT[...]:
    """Attention of one sequence [H, n, K] by its tree; `shape` holds levels, near leaves and beam."""
    n = op.Squeeze(op.Shape(k, start=1, end=2))
    levels = op.Gather(shape, 0)
    order = grow_tree(q, k, n, levels, directions, power_steps=power_steps, by_queries=by_queries)
    used = mark_used(order, n, levels)
    rows_k = take(k, order)
    rows_v = take(v, order)
    sizes, spans = count_nodes(n, levels)
    means_k = node_means(rows_k, used, sizes, levels)
    means_v = node_means(rows_v, used, sizes, levels)
    bonus = spread_coef * op.Log(node_spreads(rows_k, means_k, used, sizes, levels))
    chunks, chosen_by = cut_chunks(q, n, chunk=chunk)
    cover = descend(chosen_by, means_k, bonus, levels, op.Gather(shape, 1), op.Gather(shape, 2))
    positions, visible = open_window(n, chunk=chunk, half_width=half_width, num_globals=num_globals)
    slots, far, bias = read_columns(order, used, cover, sizes, spans, n, levels, positions, visible)
    keys = op.Concat(take(rows_k, slots), op.Gather(k, positions, axis=1), take(means_k, far), axis=2)
    values = op.Concat(take(rows_v, slots), op.Gather(v, positions, axis=1), take(means_v, far), axis=2)
    out = op.Reshape(attend_columns(chunks, keys, values, bias), op.Concat([0, -1], op.Shape(q, start=2), axis=0))
    return out[:, :n]


@script(DOMAIN, default_opset=op)
def attend_rows(
    q: FLOAT[...],
    k: FLOAT[...],
    v: FLOAT[...],
    real: BOOL[...],
    shapes: INT64[...],
    directions: FLOAT[...],
    chunk: int,
    half_width: int,
    num_globals: int,
    power_steps: int,
    by_queries: int,
    spread_coef: float,
) -> FLOAT[...]:
    """Attention of a batch [B, H, T, K] row by row, without the pads; `shapes` [B, 3], levels 0 for dense ones."""
    rows = op.SequenceEmpty(dtype=1)
    for b in range(op.Squeeze(op.Shape(q, start=0, end=1))):
        here = op.Gather(real, b)
        at = op.Squeeze(op.NonZero(here), [0])
        row_q = op.Gather(op.Gather(q, b), at, axis=1)
        row_k = op.Gather(op.Gather(k, b), at, axis=1)
        row_v = op.Gather(op.Gather(v, b), at, axis=1)
        shape = op.Gather(shapes, b)
        if op.Gather(shape, 0) == 0:
            out = attend_columns(row_q, row_k, row_v, 0.0)
        else:
            out = attend_tree(
                row_q, row_k, row_v, shape, directions, chunk=chunk, half_width=half_width,
                num_globals=num_globals, power_steps=power_steps, by_queries=by_queries, spread_coef=spread_coef,
            )  # fmt: skip
        rank = op.Where(here, op.CumSum(op.Cast(here, to=7), 0) - 1, op.Size(at))
        rows = op.SequenceInsert(rows, op.Gather(op.Pad(out, [0, 0, 0, 0, 1, 0]), rank, axis=1))
    return op.ConcatFromSequence(rows, axis=0, new_axis=1)


@script(DOMAIN, default_opset=op)
def attend(
    q: FLOAT[...],
    k: FLOAT[...],
    v: FLOAT[...],
    real: BOOL[...],
    lengths: INT64[...],
    table: INT64[...],
    directions: FLOAT[...],
    chunk: int,
    half_width: int,
    num_globals: int,
    power_steps: int,
    by_queries: int,
    spread_coef: float,
) -> FLOAT[...]:
    """Bucket attention of a batch [B, H, T, K] with real tokens [B, T]; zeros at pads.

    From `lengths[p]` tokens on, a sequence's tree has `table[p]` = (levels, near leaves, beam); levels 0 is dense.
    """
    counts = op.ReduceSum(op.Cast(real, to=7), [1], keepdims=1)
    place = op.ReduceSum(op.Cast(counts >= lengths, to=7), [1], keepdims=0) - 1
    shapes = op.Gather(table, place)
    if op.ReduceMax(shapes[:, 0], keepdims=0) == 0:
        keys = op.Unsqueeze(op.Where(real, 0.0, FAR), [1, 2])
        out = attend_columns(q, k, v, keys) * op.Unsqueeze(op.Cast(real, to=1), [1, 3])
    else:
        out = attend_rows(
            q, k, v, real, shapes, directions, chunk=chunk, half_width=half_width, num_globals=num_globals,
            power_steps=power_steps, by_queries=by_queries, spread_coef=spread_coef,
        )  # fmt: skip
    return out
