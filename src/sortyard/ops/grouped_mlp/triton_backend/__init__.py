"""The experts' nets in Triton kernels: for CUDA, or anywhere under Triton's interpreter; README.md derives them.

Importing this package needs no Triton; `triton_mlp` imports it when it is first called.
"""

from jaxtyping import Float
from torch import Tensor

from sortyard.ops.bucket_attention.triton_backend import is_available, is_compiled
from sortyard.ops.expert_dispatch import Routing


def triton_mlp(
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
    """Run all experts in kernels that gather and scatter themselves; the same result twice is the same bit for bit.

    Args:
        x: token vectors.
        routing: who processes which token; its weights may be of another type.
        up: inward matrices, `up` = F rows, or 2F when gated; of x's type, as all that follow.
        down: outward matrices.
        up_bias: inward biases.
        down_bias: outward biases.
        activation: transformers name of the activation.
        gated: whether experts are gated.

    Returns:
        The mixed outputs; zeros at padding.

    Raises:
        ValueError: if the activation is unknown.
    """
    from sortyard.ops.grouped_mlp.triton_backend.experts import run_experts

    return run_experts(
        x, routing, up=up, down=down, up_bias=up_bias, down_bias=down_bias, activation=activation, gated=gated
    )


__all__ = ["is_available", "is_compiled", "triton_mlp"]
