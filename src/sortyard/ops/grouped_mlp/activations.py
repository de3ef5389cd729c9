"""The activations an expert may have, by their transformers names."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu_squared,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activate(inner: Tensor, *, activation: str, gated: bool) -> Tensor:
    """Apply an expert's nonlinearity to its inner values.

    Args:
        inner: inner values [R, F], or [R, 2F] when gated (gate first, then up).
        activation: its transformers name.
        gated: multiply the up half by the activated gate half.

    Returns:
        Activated values [R, F].

    Raises:
        ValueError: if the activation is unknown.
    """
    check_activation(activation)
    function = _ACTIVATIONS[activation]
    if not gated:
        return function(inner)
    gate, up = inner.chunk(2, dim=-1)
    return function(gate) * up


def check_activation(name: str) -> None:
    """Refuse an activation that experts do not have.

    Args:
        name: its transformers name.

    Raises:
        ValueError: if it is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown to experts; choose one of {', '.join(_ACTIVATIONS)}")
