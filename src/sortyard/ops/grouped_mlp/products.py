"""Products of sorted rows with their experts' matrices: torch's grouped kernel, and our own loop of slices."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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


def kernel_product(
    x: Float[Tensor, "R I"], weight: Float[Tensor, "E O I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "R O"]:
    """Multiply with torch's grouped kernel; arguments as for `sliced_product`."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


def sliced_product(
    x: Float[Tensor, "R I"], weight: Float[Tensor, "E O I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "R O"]:
    """Multiply each expert's run of rows by the transpose of its matrix.

    Args:
        x: rows, expert after expert.
        weight: one [O, I] matrix per expert.
        ends: end of each expert's run of rows, rising to R.

    Returns:
        The products, in the order of the rows.
    """
    product: Tensor = _product(x, weight, ends)
    return product


@torch.library.custom_op("sortyard::grouped_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[expert].t(), out=out[start:end])
        start = end
    return out


@torch.library.custom_op("sortyard::grouped_outer", mutates_args=())
def _outer(rows: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    out = rows.new_empty(ends.shape[0], rows.shape[1], columns.shape[1])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end].t(), columns[start:end], out=out[expert])
        else:
            out[expert].zero_()
        start = end
    return out


@_product.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], weight.shape[1])


@_outer.register_fake
def _(rows: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], columns.shape[1])


def _keep_operands(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _product_gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, ends = ctx.saved_tensors  # type: ignore[attr-defined]
    need_x, need_weight, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
    grad_x = _product(grad, weight.transpose(1, 2), ends) if need_x else None
    grad_weight = _outer(grad, x, ends) if need_weight else None
    return grad_x, grad_weight, None


_product.register_autograd(_product_gradients, setup_context=_keep_operands)
