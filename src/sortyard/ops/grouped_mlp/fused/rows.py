"""The steps that both passes share: gather a batch's rows, multiply them, bring copies home."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.grouped_mlp.fused.batches import Batch, Batches


def with_zero_row(source: Float[Tensor, "N D"]) -> Float[Tensor, "N1 D"]:
    """Append the row of zeros that `gather_rows` takes for padding.

    Args:
        source: one row per token.

    Returns:
        A copy with one row more.
    """
    return F.pad(source, (0, 0, 0, 1))


def gather_rows(
    source: Float[Tensor, "N1 D"], order: Batches, batch: Batch, buffer: Float[Tensor, "longest D"]
) -> Float[Tensor, "c r D"]:
    """Copy a batch's tokens into the buffer's first rows; rows of padding are zero.

    Args:
        source: what `with_zero_row` made.
        order: the batches.
        batch: one of them.
        buffer: scratch memory.

    Returns:
        The filled part of the buffer, by expert.
    """
    rows = buffer[: batch.num_rows]
    torch.index_select(source, 0, order.tokens[batch.rows], out=rows)
    return by_expert(rows, batch)


def by_expert(rows: Float[Tensor, "rows O"], batch: Batch) -> Float[Tensor, "c r O"]:
    """View a batch's rows by expert.

    Args:
        rows: its rows.
        batch: the batch.

    Returns:
        The same memory.
    """
    return rows.view(batch.num_experts, batch.size, rows.shape[-1])


def multiply_into(out: Float[Tensor, "c I O"], left: Float[Tensor, "c I K"], right: Float[Tensor, "c K O"]) -> None:
    """Write left @ right, computed in `left`'s type, into `out`, whatever the types of `right` and `out` are.

    Args:
        out: where the products go.
        left: left factors.
        right: right factors.
    """
    right = right.to(left.dtype)
    if out.dtype == left.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(left @ right)


def linear_into(
    out: Float[Tensor, "c r O"],
    rows: Float[Tensor, "c r I"],
    weight: Float[Tensor, "c O I"],
    bias: Float[Tensor, "c O"] | None,
) -> None:
    """Write rows @ weight^T + bias into `out`.

    Args:
        out: where the result goes, in the type of `rows`.
        rows: the rows.
        weight: matrices of any floating type.
        bias: their biases, or None.
    """
    if bias is None:
        multiply_into(out, rows, weight.transpose(1, 2))
    else:  # in one step: half types are rounded once
        torch.baddbmm(bias.to(rows.dtype).unsqueeze(1), rows, weight.transpose(1, 2).to(rows.dtype), out=out)


def new_copies(like: Float[Tensor, "N D"], order: Batches) -> Float[Tensor, "rows1 D"]:
    """Make room for the copies of all batches, and a row of zeros that `combine_copies` gives to nobody's slots.

    Args:
        like: a tensor of the copies' width and type.
        order: the batches.

    Returns:
        Memory, uninitialised but for the last row.
    """
    copies = like.new_empty(order.num_rows + 1, like.shape[1])
    copies[-1].zero_()
    return copies


def combine_copies(
    copies: Float[Tensor, "rows1 D"], order: Batches, weights: Float[Tensor, "N k"] | None
) -> Float[Tensor, "N D"]:
    """Add up each token's copies, weighted; one pass over the copies, which accumulates in float32 or better.

    Args:
        copies: what `new_copies` made, filled.
        order: the batches.
        weights: weight of each slot; None = 1.

    Returns:
        One row per token.
    """
    scales = None if weights is None else weights.to(copies.dtype)
    return F.embedding_bag(order.places, copies, mode="sum", per_sample_weights=scales)
