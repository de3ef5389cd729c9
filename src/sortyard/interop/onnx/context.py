"""The gate's contexts, as functions of an ONNX graph; a row of the batch is one sequence."""

from onnxscript import FLOAT, INT64, graph, script
from onnxscript import opset18 as op

from sortyard.interop.onnx.tree import DOMAIN


@script(DOMAIN, default_opset=op)
def sequence_means(hidden: FLOAT[...], real: FLOAT[...]) -> FLOAT[...]:
    """Mean [B, D] of each row's real tokens [B, T]; zeros for a row of pads."""
    counts = op.ReduceSum(real, [1], keepdims=1)
    return op.ReduceSum(hidden * op.Unsqueeze(real, [2]), [1], keepdims=0) / op.Max(counts, 1.0)


@script(DOMAIN, default_opset=op)
def mean_context(hidden: FLOAT[...], ids: INT64[...]) -> FLOAT[...]:
    """The mean of the token's own sequence."""
    real = op.Cast(ids >= 0, to=1)
    return op.Unsqueeze(sequence_means(hidden, real), [1]) * op.Unsqueeze(real, [2])


@script(DOMAIN, default_opset=op)
def shuffled_context(hidden: FLOAT[...], ids: INT64[...]) -> FLOAT[...]:
    """The mean of the batch's next sequence, pads left out; zeros if there is no other."""
    real = op.Cast(ids >= 0, to=1)
    number = op.ReduceMax(ids, [1], keepdims=0)  # -1 at rows of pads
    count = op.ReduceMax(number, keepdims=0) + 1
    rows = op.Concat(op.Squeeze(op.NonZero(number >= 0), [0]), [0], axis=0)
    following = op.Gather(rows, op.Mod(number + 1, op.Max(count, 1)))
    means = op.Gather(sequence_means(hidden, real), following) * op.Cast(count > 1, to=1)
    return op.Unsqueeze(means, [1]) * op.Unsqueeze(real, [2])


@script(DOMAIN, default_opset=op)
def running_mean_context(hidden: FLOAT[...], ids: INT64[...], positions: INT64[...]) -> FLOAT[...]:
    """The mean of the sequence's tokens up to this one."""
    real = op.Unsqueeze(op.Cast(ids >= 0, to=1), [2])
    return op.CumSum(hidden * real, 1) / op.Unsqueeze(op.Cast(positions + 1, to=1), [2]) * real


@script(DOMAIN, default_opset=op)
def decayed_context(hidden: FLOAT[...], ids: INT64[...], positions: INT64[...], decay: float) -> FLOAT[...]:
    """s_t / n_t with s_t = decay s_(t-1) + h_t and n_t = decay n_(t-1) + 1 over the sequence's tokens."""
    real = op.Unsqueeze(op.Cast(ids >= 0, to=1), [2])
    factor = op.Where(real > 0.0, decay, 1.0)

    @graph()
    def step(total, value, kept):  # type: ignore[no-untyped-def] # onnxscript takes its type for the outer one's
        following = kept * total + value
        return following, op.Identity(following)

    _, sums = op.Scan(
        hidden[:, 0] * 0.0, hidden * real, factor, body=step, num_scan_inputs=2,
        scan_input_axes=[1, 1], scan_output_axes=[1],
    )  # fmt: skip
    norms = (1.0 - op.Pow(decay, op.Cast(positions + 1, to=1))) / (1.0 - decay)
    return sums / op.Unsqueeze(norms, [2]) * real
