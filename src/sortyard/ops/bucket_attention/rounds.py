"""Attention by hash rounds: one pass over all parts with a running softmax, and its exact backward."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.hash_rounds import hash_rounds
from sortyard.ops.bucket_attention.round_parts import RoundsPlan
from sortyard.ops.bucket_attention.round_pass import Dropout, attend_parts, differentiate_parts
from sortyard.ops.bucket_attention.spec import BucketSpec


def rounds_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by hash rounds; places at pads are arbitrary.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.
        dropout_p: Probability of dropping a weight.

    Returns:
        One output a query.
    """
    plan = RoundsPlan(spec, group, causal, hash_rounds(q, k, spec, group=group, causal=causal))
    # Drawn from torch's own state, so that a recomputed forward under activation checkpointing drops the same weights.
    dropout = Dropout(dropout_p, int(torch.randint(2**62, (), device="cpu"))) if dropout_p > 0 else None
    out: Tensor = _RoundsAttention.apply(q, k, v, plan, dropout)  # type: ignore[no-untyped-call]
    return out


class _RoundsAttention(torch.autograd.Function):
    """Keeps inputs, output and log-sum-exp only; the backward gathers and masks again."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, plan: RoundsPlan, dropout: Dropout | None) -> Tensor:
        out, lse = attend_parts(q, k, v, plan, dropout=dropout)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.dropout = plan, dropout  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        plan, dropout = ctx.plan, ctx.dropout  # type: ignore[attr-defined]
        with torch.autocast(q.device.type, enabled=False):  # the caller's may be on here
            dq, dk, dv = differentiate_parts(grads[0], q, k, v, plan, out=out, lse=lse, dropout=dropout)
        return dq, dk, dv, None, None
