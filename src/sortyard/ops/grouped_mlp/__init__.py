"""The experts' feed-forward nets over routed tokens, dropless; this module chooses the backend."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp.activations import ACTIVATIONS, activate, check_activation
from sortyard.ops.grouped_mlp.fused import fused_mlp
from sortyard.ops.grouped_mlp.reference import masked_mlp
from sortyard.ops.grouped_mlp.sorted import can_group, sorted_mlp
from sortyard.ops.grouped_mlp.triton_backend import is_available, is_compiled, triton_mlp

_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": masked_mlp,
    "grouped": sorted_mlp,
    "fused": fused_mlp,
    "triton": triton_mlp,
}
BACKENDS = tuple(_BACKENDS)

# Routed copies from which our kernels win on an H100, in bf16 and width 768 with gradients: 131,072 copies take .99 (8
# experts) and .67 (64) of the time of torch's kernel, 32,768 take 1.23 and 1.30, where the host holds both up.
_TRITON_FROM = 100_000

__all__ = ["ACTIVATIONS", "BACKENDS", "activate", "check_activation", "choose_backend", "grouped_mlp"]


def choose_backend(
    x: Float[Tensor, "N D"], *, up: Float[Tensor, "E up D"], down: Float[Tensor, "E D F"], copies: int
) -> str:
    """Name the fastest backend that can run these operands.

    Args:
        x: token vectors, in the type to compute in.
        up: stacked inward matrices.
        down: stacked outward matrices.
        copies: routed copies of tokens.

    Returns:
        "fused" on a CPU. Elsewhere "triton" for many copies in bfloat16 outside of graphs; else "grouped" where torch's
        kernel runs, and "fused" where it does not.
    """
    if x.device.type == "cpu" or not can_group(x, widths=_widths(up, down)):
        return "fused"
    if torch.compiler.is_compiling() or x.dtype != torch.bfloat16:  # asked first: graphs must not depend on the number
        return "grouped"
    return "triton" if copies >= _TRITON_FROM and is_compiled(x.device) else "grouped"


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
    the gate and the second the value. Every routed copy is computed; padding comes out zero. Everything is computed
    in x's type, or in autocast's.

    Args:
        x: token vectors.
        routing: who processes which token.
        up: inward matrices, `up` = F rows, or 2F when gated.
        down: outward matrices.
        up_bias: inward biases.
        down_bias: outward biases.
        activation: transformers name of the activation.
        gated: whether experts are gated.
        backend: "reference", "grouped", "fused" or "triton"; left out, `choose_backend` decides.

    Returns:
        The mixed outputs.

    Raises:
        ValueError: if widths do not fit `gated`, a name is unknown, or the backend does not run here.
    """
    if up.shape[1] != down.shape[2] * (2 if gated else 1):
        raise ValueError(
            f"up has {up.shape[1]} rows; it must have {'2F' if gated else 'F'} for down's inner width F={down.shape[2]}"
        )
    check_activation(activation)
    x = x.to(_compute_dtype(x))
    if backend is None:
        backend = choose_backend(x, up=up, down=down, copies=routing.experts.numel())
    _check_runs(backend, x, widths=_widths(up, down))
    matrices = {"up": up, "down": down, "up_bias": up_bias, "down_bias": down_bias}
    if backend != "fused":  # which casts one expert's matrices when it comes to them
        matrices = {name: None if value is None else value.to(x.dtype) for name, value in matrices.items()}
    with torch.autocast(x.device.type, enabled=False):
        return _BACKENDS[backend](x, routing, **matrices, activation=activation, gated=gated)


def _compute_dtype(x: Tensor) -> torch.dtype:
    # As torch's own autocast, which leaves float64 alone.
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _widths(up: Float[Tensor, "E up D"], down: Float[Tensor, "E D F"]) -> tuple[int, ...]:
    return (up.shape[2], up.shape[1], down.shape[2])


def _check_runs(backend: str, x: Tensor, *, widths: tuple[int, ...]) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "grouped" and not can_group(x, widths=widths):
        raise ValueError(
            f"backend='grouped' cannot multiply {x.dtype} rows of widths {widths} on {x.device.type}: torch's kernel "
            "runs on CPUs and on CUDA devices of compute capability 8.0 or more; it takes float32, bfloat16 and "
            "float16, rows of a multiple of 16 bytes, and in compiled graphs bfloat16 only; leave backend out"
        )
    if backend == "triton" and not is_available(x.device):
        raise ValueError(
            f"backend='triton' needs triton and a CUDA device, and the tensors are on {x.device.type}; leave backend "
            "out (or set TRITON_INTERPRET=1 to interpret its kernels, which is slow)"
        )
