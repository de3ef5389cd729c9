"""The steps that both passes share: gather a run's rows, multiply them, bring copies home."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.grouped_mlp.fused.runs import Run, Runs


def gather_rows(source: Float[Tensor, "N D"], run: Run, buffer: Float[Tensor, "longest D"]) -> Float[Tensor, "r D"]:
    """Copy a run's tokens into the buffer's first rows; rows of padding are zero.

    Args:
        source: one row per token.
        run: the run.
        buffer: scratch memory.

    Returns:
        The filled part of the buffer.
    """
    count = len(run.tokens)
    torch.index_select(source, 0, run.tokens, out=buffer[:count])
    buffer[count : run.size].zero_()
    return buffer[: run.size]


def multiply_into(out: Float[Tensor, "I O"], left: Float[Tensor, "I K"], right: Float[Tensor, "K O"]) -> None:
    """Write left @ right, computed in `left`'s type, into `out`, whatever the types of `right` and `out` are.

    Args:
        out: where the product goes.
        left: left factor.
        right: right factor.
    """
    right = right.to(left.dtype)
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def linear_into(
    out: Float[Tensor, "r O"],
    rows: Float[Tensor, "r I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
) -> None:
    """Write rows @ weight^T + bias into `out`.

    Args:
        out: where the result goes, in the type of `rows`.
        rows: the rows.
        weight: a matrix of any floating type.
        bias: its bias, or None.
    """
    if bias is None:
        multiply_into(out, rows, weight.t())
    else:
        torch.addmm(bias.to(rows.dtype), rows, weight.t().to(rows.dtype), out=out)


def new_copies(like: Float[Tensor, "N D"], order: Runs) -> Float[Tensor, "rows D"]:
    """Make room for the copies of all runs, and a row of zeros that `combine_copies` gives to nobody's slots.

    Args:
        like: a tensor of the copies' width and type.
        order: the runs.

    Returns:
        Memory, uninitialised but for the last row.
    """
    copies = like.new_empty(order.num_rows + 1, like.shape[1])
    copies[-1].zero_()
    return copies


def combine_copies(
    copies: Float[Tensor, "rows D"], order: Runs, weights: Float[Tensor, "N k"] | None
) -> Float[Tensor, "N D"]:
    """Add up each token's copies, weighted; one pass over the copies, which accumulates in float32 or better.

    Args:
        copies: what `new_copies` made, filled.
        order: the runs.
        weights: weight of each slot; None = 1.

    Returns:
        One row per token.
    """
    scales = None if weights is None else weights.to(copies.dtype)
    return F.embedding_bag(order.places, copies, mode="sum", per_sample_weights=scales)
