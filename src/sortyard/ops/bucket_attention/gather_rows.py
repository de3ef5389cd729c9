"""Rows by index with a gradient that is fast on a CPU and summed in at least float32."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """index_select, whose own backward (index_add) walks row by row on one CPU core."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = table.shape[0]  # type: ignore[attr-defined]
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (index,) = grads, ctx.saved_tensors  # type: ignore[attr-defined]
        # A global token's row is summed over all chunks: too many terms for bfloat16.
        wide = grad if grad.dtype == torch.float64 else grad.float()
        summed = torch.ops.aten.embedding_dense_backward(wide.contiguous(), index, ctx.num_rows, -1, False)  # type: ignore[attr-defined]
        return summed.to(grad.dtype), None


def gather_rows(
    table: Float[Tensor, "S H rows K"], index: Int[Tensor, "S H *places"]
) -> Float[Tensor, "S H *places K"]:
    """Rows of each sequence's and head's table.

    Args:
        table: One table a sequence and head.
        index: Rows to take, from 0 to rows - 1; repeats are allowed.

    Returns:
        The rows, differentiable with respect to the table.
    """
    S, H, rows, K = table.shape
    base = torch.arange(S * H, device=table.device).view(S, H, *[1] * (index.ndim - 2)) * rows
    taken: Tensor = _GatherRows.apply(table.reshape(S * H * rows, K), (index + base).flatten())  # type: ignore[no-untyped-call]
    return taken.view(*index.shape, K)
