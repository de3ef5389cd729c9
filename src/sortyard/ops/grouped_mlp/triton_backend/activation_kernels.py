"""Activations and their slopes, by element."""

from typing import no_type_check

import triton
import triton.language as tl

KERNEL_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@triton.jit
@no_type_check
def _tanh(x):
    # Written in exp, which never overflows here; its error near 0 is one rounding of 1, not of x.
    fade = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - fade) / (1.0 + fade)
    return tl.where(x < 0, -size, size)


@triton.jit
@no_type_check
def activate(x, ACTIVATION: tl.constexpr):
    """An activation's values and slopes; a caller that drops one does not pay for it."""
    if ACTIVATION == "gelu":
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        value = x * share
        slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif ACTIVATION == "gelu_tanh":
        bent = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        value = 0.5 * x * (1.0 + bent)
        inner_slope = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        slope = 0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * inner_slope
    elif ACTIVATION == "silu":
        fade = tl.exp(-tl.abs(x))
        share = tl.where(x < 0, fade, 1.0) / (1.0 + fade)
        value = x * share
        slope = share * (1.0 + x * (1.0 - share))
    elif ACTIVATION == "tanh":
        value = _tanh(x)
        slope = 1.0 - value * value
    else:
        is_on = (x > 0).to(x.dtype)
        value = x * is_on
        slope = is_on
        if ACTIVATION == "relu2":
            slope = 2.0 * value
            value = value * value
    return value, slope
