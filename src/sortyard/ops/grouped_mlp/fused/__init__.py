"""All experts in one operator, forward and backward written out, a batch of experts at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp.activations import check_activation
from sortyard.ops.grouped_mlp.fused.batches import max_rows
from sortyard.ops.grouped_mlp.fused.operator import expert_mlp


def fused_mlp(
    x: Float[Tensor, "N D"],
    routing: Routing,
    *,
    up: Float[Tensor, "E up D"],
    down: Float[Tensor, "E D F"],
    up_bias: Float[Tensor, "E up"] | None,
    down_bias: Float[Tensor, "E D"] | None,
    activation: str,
    gated: bool,
) -> Float[Tensor, "N D"]:
    """Run all experts; arguments as for `grouped_mlp`, but the matrices may be of another type than x."""
    check_activation(activation)
    operands = (x, routing.weights, up, down, up_bias, down_bias)
    keep = torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands)
    kept_rows = max_rows(routing.experts.numel(), num_experts=len(up)) if keep else None
    out: Tensor
    out, _ = expert_mlp(
        x.contiguous(), routing.experts, routing.weights, up, down, up_bias, down_bias, activation, gated, kept_rows
    )
    return out


__all__ = ["fused_mlp"]
