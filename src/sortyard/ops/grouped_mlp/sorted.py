"""Experts over sorted copies by torch's grouped products: gather, multiply, activate, multiply, add back."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Dispatch, Routing, combine, dispatch, sort_copies
from sortyard.ops.grouped_mlp.activations import activate

GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_group(x: Float[Tensor, "R D"], *, widths: tuple[int, ...]) -> bool:
    """Say whether torch's grouped kernel can multiply these rows.

    Args:
        x: rows, in the type they will be multiplied in.
        widths: all row lengths of the operands.

    Returns:
        False where the kernel does not exist, or refuses type, alignment or compilation.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in widths)
    # Compiled graphs only take bfloat16 (torch 2.13's shape rule for grouped_mm); drop this when it takes the others.
    compilable = x.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    return hasattr(F, "grouped_mm") and x.dtype in GROUPED_DTYPES and aligned and compilable and _device_can(x)


def _device_can(x: Tensor) -> bool:
    if x.device.type == "cuda":
        return torch.cuda.get_device_capability(x.device) >= (8, 0)
    return x.device.type == "cpu"


def sorted_mlp(
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
    """Run all experts side by side; arguments as for `grouped_mlp`."""
    order = sort_copies(routing)
    rows, pads = dispatch(x, order), None
    if torch.compiler.is_compiling():  # pads stand behind the last run there, where products write nothing
        pads = (order.experts >= len(up))[:, None]
        rows = rows.masked_fill(pads, 0)  # for their gradient
    inner = F.grouped_mm(rows, up.transpose(1, 2), offs=order.ends)  # [R, up]
    inner = activate(_add_bias(inner, up_bias, order), activation=activation, gated=gated)  # [R, F]
    copies = F.grouped_mm(inner, down.transpose(1, 2), offs=order.ends)  # [R, D]
    copies = _add_bias(copies, down_bias, order)
    if pads is not None:
        copies = copies.masked_fill(pads, 0)
    return combine(copies, order, weights=routing.weights)


def _add_bias(rows: Float[Tensor, "R O"], bias: Float[Tensor, "E O"] | None, order: Dispatch) -> Float[Tensor, "R O"]:
    if bias is None:
        return rows
    experts = order.experts.clamp_max(len(bias) - 1)  # pads of a traced graph have none
    return _AddBias.apply(rows, bias, experts, order.ends)  # type: ignore[no-untyped-call,no-any-return]


class _AddBias(torch.autograd.Function):
    """Adds each row its expert's bias. The gradient is a grouped product with ones, which sums in 32 bits."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(ends)
        return rows + bias.index_select(0, experts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (ends,) = ctx.saved_tensors
        ones = grad.new_ones(len(grad), 16 // grad.element_size()).T  # the kernel takes rows of at least 16 bytes
        return grad, F.grouped_mm(ones, grad.contiguous(), offs=ends)[:, 0], None, None
