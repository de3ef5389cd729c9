"""The experts' feed-forward nets over routed tokens, dropless; this module chooses the backend."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp.activations import activate, check_activation
from sortyard.ops.grouped_mlp.products import can_group, kernel_product, sliced_product
from sortyard.ops.grouped_mlp.reference import masked_mlp
from sortyard.ops.grouped_mlp.sorted import sorted_mlp

_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": masked_mlp,
    "grouped": partial(sorted_mlp, product=kernel_product),
    "loop": partial(sorted_mlp, product=sliced_product),
}
BACKENDS = tuple(_BACKENDS)

__all__ = ["BACKENDS", "activate", "check_activation", "choose_backend", "grouped_mlp"]


def choose_backend(x: Float[Tensor, "N D"], *, up: Float[Tensor, "E up D"], down: Float[Tensor, "E D F"]) -> str:
    """Name the fastest backend that can run these operands, which are of one type already.

    Args:
        x: token vectors.
        up: stacked inward matrices.
        down: stacked outward matrices.

    Returns:
        "grouped" where torch's kernel runs, else "loop".
    """
    return "grouped" if can_group(x, widths=(x.shape[1], up.shape[1], down.shape[2])) else "loop"


def grouped_mlp(
    x: Float[Tensor, "N D"],
    routing: Routing,
    *,
    up: Float[Tensor, "E up D"],
    down: Float[Tensor, "E D F"],
    up_bias: Float[Tensor, "E up"] | None = None,
    down_bias: Float[Tensor, "E D"] | None = None,
    activation: str = "gelu",
    gated: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "N D"]:
    """Add up, for each token, the outputs of its experts times their weights.

    Expert e computes `down[e] act(up[e] x + up_bias[e]) + down_bias[e]`; when gated, the first half of `up`'s rows is
    the gate and the second the value. Every routed copy is computed; padding comes out zero. Under autocast all
    operands are cast to its type, and so is the result.

    Args:
        x: token vectors.
        routing: who processes which token.
        up: inward matrices, `up` = F rows, or 2F when gated.
        down: outward matrices.
        up_bias: inward biases.
        down_bias: outward biases.
        activation: transformers name of the activation.
        gated: whether experts are gated.
        backend: "reference", "grouped" or "loop"; left out, `choose_backend` decides.

    Returns:
        The mixed outputs.

    Raises:
        ValueError: if widths do not fit `gated`, or a name is unknown.
    """
    if up.shape[1] != down.shape[2] * (2 if gated else 1):
        raise ValueError(
            f"up has {up.shape[1]} rows; it must have {'2F' if gated else 'F'} for down's inner width F={down.shape[2]}"
        )
    dtype = _compute_dtype(x)
    x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
    up_bias = None if up_bias is None else up_bias.to(dtype)
    down_bias = None if down_bias is None else down_bias.to(dtype)
    backend = choose_backend(x, up=up, down=down) if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    with torch.autocast(x.device.type, enabled=False):
        return _BACKENDS[backend](
            x, routing, up=up, down=down, up_bias=up_bias, down_bias=down_bias, activation=activation, gated=gated
        )


def _compute_dtype(x: Tensor) -> torch.dtype:
    # As torch's own autocast, which leaves float64 alone.
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
