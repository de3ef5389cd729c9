"""Experts over routed tokens, as functions of an ONNX graph: each expert multiplies its own tokens only."""

from onnxscript import FLOAT, INT64, script
from onnxscript import opset18 as op

from sortyard.interop.onnx.tree import DOMAIN


@script(DOMAIN, default_opset=op)
def sort_copies(experts: INT64[...], up: FLOAT[...]) -> tuple[INT64[...], INT64[...], INT64[...]]:
    """Where each expert's copies begin [E + 1] in the order of the experts, the real copies' places, and all ranks.

    `experts` [N, k] holds numbers from 0 to E - 1, and E at pads, whose copies come last and belong to nobody.
    """
    flat = op.Reshape(experts, [-1])
    numbers = op.Range(0, op.Squeeze(op.Shape(up, start=0, end=1)) + 1, 1)
    borders = op.ReduceSum(op.Cast(op.Unsqueeze(flat, [0]) < op.Unsqueeze(numbers, [1]), to=7), [1], keepdims=0)
    _, order = op.TopK(flat, op.Shape(flat), axis=-1, largest=0, sorted=1)
    ranks = op.ScatterElements(order, order, op.Range(0, op.Size(flat), 1), axis=0)
    return borders, order[: borders[-1]], ranks


@script(DOMAIN, default_opset=op)
def copy_tokens(x: FLOAT[...], copies: INT64[...], experts: INT64[...]) -> FLOAT[...]:
    """The token behind each copy."""
    return op.Gather(x, copies / op.Squeeze(op.Shape(experts, start=1)))


@script(DOMAIN, default_opset=op)
def multiply_groups(rows: FLOAT[...], borders: INT64[...], matrices: FLOAT[...]) -> FLOAT[...]:
    """Rows [R, in] times transposed matrices [E, out, in]: those from borders[e] to borders[e + 1] times the e-th."""
    parts = op.SequenceEmpty(dtype=1)
    for e in range(op.Squeeze(op.Shape(matrices, start=0, end=1))):
        matrix = op.Transpose(op.Gather(matrices, e), perm=[1, 0])
        parts = op.SequenceInsert(parts, op.MatMul(rows[borders[e] : borders[e + 1]], matrix))
    return op.ConcatFromSequence(parts, axis=0)


@script(DOMAIN, default_opset=op)
def add_bias(rows: FLOAT[...], bias: FLOAT[...], copies: INT64[...], experts: INT64[...]) -> FLOAT[...]:
    """Rows [R, out] plus the bias [E, out] of each row's expert."""
    return rows + op.Gather(bias, op.Gather(op.Reshape(experts, [-1]), copies))


@script(DOMAIN, default_opset=op)
def combine_copies(outputs: FLOAT[...], ranks: INT64[...], weights: FLOAT[...]) -> FLOAT[...]:
    """Each token's sum [N, D] of its copies' outputs [R, D] by their weights [N, k]; pads' copies are zero."""
    padded = op.Pad(outputs, [0, 0, 1, 0])
    copies = op.Gather(padded, op.Min(ranks, op.Squeeze(op.Shape(outputs, start=0, end=1))))
    by_token = op.Reshape(copies, op.Concat(op.Shape(weights), [-1], axis=0))
    return op.ReduceSum(by_token * op.Unsqueeze(weights, [2]), [1], keepdims=0)


@script(DOMAIN, default_opset=op)
def gelu(x: FLOAT[...]) -> FLOAT[...]:
    """By the error function."""
    return 0.5 * x * (1.0 + op.Erf(x * 0.7071067811865476))


@script(DOMAIN, default_opset=op)
def gelu_tanh(x: FLOAT[...]) -> FLOAT[...]:
    """By the hyperbolic tangent."""
    return 0.5 * x * (1.0 + op.Tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@script(DOMAIN, default_opset=op)
def relu(x: FLOAT[...]) -> FLOAT[...]:
    """The positive part."""
    return op.Relu(x)


@script(DOMAIN, default_opset=op)
def relu_squared(x: FLOAT[...]) -> FLOAT[...]:
    """The square of the positive part."""
    return op.Relu(x) * op.Relu(x)


@script(DOMAIN, default_opset=op)
def silu(x: FLOAT[...]) -> FLOAT[...]:
    """The value by its own sigmoid."""
    return x * op.Sigmoid(x)


@script(DOMAIN, default_opset=op)
def tanh(x: FLOAT[...]) -> FLOAT[...]:
    """The hyperbolic tangent."""
    return op.Tanh(x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
    "swish": silu,
    "tanh": tanh,
}
