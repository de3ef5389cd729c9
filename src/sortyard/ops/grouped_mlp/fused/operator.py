"""The experts' nets as one operator: opaque to the compiler, with its own backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sortyard.ops.grouped_mlp.fused.backward import Gradients, Needs, new_gradients, run_backward
from sortyard.ops.grouped_mlp.fused.forward import Net, run_forward


@torch.library.custom_op("sortyard::expert_mlp", mutates_args=())
def expert_mlp(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
    kept_rows: int | None,
) -> tuple[Tensor, Tensor]:
    """Mixed outputs [N, D], and what backward needs; arguments as for `run_forward`."""
    net = Net(up, down, up_bias, down_bias, activation, gated)
    return run_forward(x, experts, weights, net, kept_rows=kept_rows)


@torch.library.custom_op("sortyard::expert_mlp_backward", mutates_args=())
def expert_mlp_backward(
    grad: Tensor,
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    kept: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients, in the order of `Gradients`; arguments as for `run_backward`."""
    net = Net(up, down, up_bias, down_bias, activation, gated)
    # Forward runs outside autocast; backward may be called within, and must not be cast by it.
    with torch.autocast(x.device.type, enabled=False):
        return run_backward(grad, x, experts, weights, kept, net, needs=Needs(*needs))


# What the compiler reads: shapes and types alone. Arguments that do not matter to them begin with an underscore.
# Shapes follow from the arguments only: inductor keeps graphs on disk, and does not see that these functions change.
@expert_mlp.register_fake
def _(
    x: Tensor,
    _experts: Tensor,
    _weights: Tensor,
    up: Tensor,
    _down: Tensor,
    _up_bias: Tensor | None,
    _down_bias: Tensor | None,
    _activation: str,
    _gated: bool,
    kept_rows: int | None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(kept_rows or 0, up.shape[1])


@expert_mlp_backward.register_fake
def _(
    _grad: Tensor,
    x: Tensor,
    _experts: Tensor,
    weights: Tensor,
    _kept: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
    needs: Sequence[bool],
) -> Gradients:
    return new_gradients(x, weights, Net(up, down, up_bias, down_bias, activation, gated), needs=Needs(*needs))


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, experts, weights, up, down, up_bias, down_bias, activation, gated, _ = inputs
    ctx.save_for_backward(x, experts, weights, output[1], up, down, up_bias, down_bias)
    ctx.settings = (activation, gated)
    # The gradient of what forward keeps is never asked for; without this it would be made of zeros, in full size.
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    x, experts, weights, kept, up, down, up_bias, down_bias = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    needs = [wanted[0], *wanted[2:7]]
    found = expert_mlp_backward(
        grad.contiguous(), x, experts, weights, kept, up, down, up_bias, down_bias, *ctx.settings, needs
    )
    given = [gradient if needed else None for gradient, needed in zip(found, needs, strict=True)]
    return given[0], None, *given[1:], None, None, None


def _refuse(_ctx: Any, *_grads: Tensor | None) -> None:
    raise RuntimeError(
        "the fused experts have no second derivative; call grouped_mlp with backend='reference' or 'grouped', "
        "which autograd can differentiate twice"
    )


expert_mlp.register_autograd(_gradients, setup_context=_keep_operands)
expert_mlp_backward.register_autograd(_refuse)
