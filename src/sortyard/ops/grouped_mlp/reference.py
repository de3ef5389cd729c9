"""Experts one by one with a mask each: slow, and plainly right."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp.activations import activate


def masked_mlp(
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
    """Send the tokens of each expert through it and add up; arguments as for `grouped_mlp`."""
    out = torch.zeros_like(x)
    up_biases = [None] * len(up) if up_bias is None else up_bias.unbind()
    down_biases = [None] * len(up) if down_bias is None else down_bias.unbind()
    experts = zip(up.unbind(), down.unbind(), up_biases, down_biases, strict=True)
    for number, (w_up, w_down, b_up, b_down) in enumerate(experts):
        tokens, slot = (routing.experts == number).nonzero(as_tuple=True)
        inner = activate(F.linear(x[tokens], w_up, b_up), activation=activation, gated=gated)
        weight = routing.weights[tokens, slot][:, None].to(x.dtype)
        out = out.index_add(0, tokens, F.linear(inner, w_down, b_down) * weight)
    return out
