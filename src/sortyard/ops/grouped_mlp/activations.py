"""The activations an expert may have, by their transformers names, and their derivatives."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_aten = torch.ops.aten


class _Activation(NamedTuple):
    """A function, and two in-place twins for code that runs outside autograd; aten's own kernels in all three."""

    apply: Callable[[Tensor], Tensor]
    into: Callable[..., Tensor]  # (x, out=y)
    gradient: Callable[..., Tensor]  # (grad of y, x, grad_input=grad of x)


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _relu_squared_into(x: Tensor, *, out: Tensor) -> Tensor:
    _aten.relu.out(x, out=out)
    return out.square_()


def _relu_squared_gradient(grad: Tensor, x: Tensor, *, grad_input: Tensor) -> Tensor:
    return torch.mul(grad, F.relu(x).mul_(2), out=grad_input)


def _relu_gradient(grad: Tensor, x: Tensor, *, grad_input: Tensor) -> Tensor:
    _aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad_input)
    return grad_input


def _tanh_gradient(grad: Tensor, x: Tensor, *, grad_input: Tensor) -> Tensor:
    _aten.tanh_backward.grad_input(grad, torch.tanh(x), grad_input=grad_input)
    return grad_input


def _gelu(approximate: str) -> _Activation:
    return _Activation(
        partial(F.gelu, approximate=approximate),
        partial(_aten.gelu.out, approximate=approximate),
        partial(_aten.gelu_backward.grad_input, approximate=approximate),
    )


_SILU = _Activation(F.silu, _aten.silu.out, _aten.silu_backward.grad_input)
_ACTIVATIONS: dict[str, _Activation] = {
    "gelu": _gelu("none"),
    "gelu_new": _gelu("tanh"),
    "gelu_pytorch_tanh": _gelu("tanh"),
    "relu": _Activation(F.relu, _aten.relu.out, _relu_gradient),
    "relu2": _Activation(_relu_squared, _relu_squared_into, _relu_squared_gradient),
    "silu": _SILU,
    "swish": _SILU,
    "tanh": _Activation(torch.tanh, _aten.tanh.out, _tanh_gradient),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


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
    function = _ACTIVATIONS[activation].apply
    if not gated:
        return function(inner)
    gate, up = inner.chunk(2, dim=-1)
    return function(gate) * up


def activate_into(out: Float[Tensor, "*R F"], inner: Float[Tensor, "*R up"], *, activation: str, gated: bool) -> None:
    """Write `activate(inner)` into `out`; no autograd.

    Args:
        out: where the activated values go.
        inner: inner values; `up` is F, or 2F when gated.
        activation: a known transformers name.
        gated: whether experts are gated.
    """
    function = _ACTIVATIONS[activation].into
    if not gated:
        function(inner, out=out)
        return
    gate, up = inner.chunk(2, dim=-1)
    function(gate, out=out)
    out.mul_(up)


def activation_gradient_into(
    out: Float[Tensor, "*R up"],
    grad: Float[Tensor, "*R F"],
    inner: Float[Tensor, "*R up"],
    *,
    activation: str,
    gated: bool,
) -> None:
    """Write the gradient with respect to the inner values into `out`; no autograd.

    Args:
        out: where it goes; when not gated it may be `grad` itself.
        grad: gradient with respect to the activated values.
        inner: the inner values.
        activation: a known transformers name.
        gated: whether experts are gated.
    """
    function = _ACTIVATIONS[activation]
    if not gated:
        function.gradient(grad, inner, grad_input=out)
        return
    gate, up = inner.chunk(2, dim=-1)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    function.into(gate, out=grad_up)
    grad_up.mul_(grad)
    torch.mul(grad, up, out=grad_gate)
    function.gradient(grad_gate, gate, grad_input=grad_gate)


def check_activation(name: str) -> None:
    """Refuse an activation that experts do not have.

    Args:
        name: its transformers name.

    Raises:
        ValueError: if it is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown to experts; choose one of {', '.join(_ACTIVATIONS)}")
