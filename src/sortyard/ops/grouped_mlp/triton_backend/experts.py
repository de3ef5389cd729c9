"""The experts' nets as one autograd function, and its launches."""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp.activations import check_activation
from sortyard.ops.grouped_mlp.triton_backend.problem import Problem, make_problem
from sortyard.ops.grouped_mlp.triton_backend.product_kernels import (
    add_outer,
    bring_home,
    expand,
    expand_backward,
    sum_copies,
)
from sortyard.ops.grouped_mlp.triton_backend.tile_kernels import INTERPRETED


def run_experts(
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
    """Run all experts; arguments as for `triton_mlp`."""
    check_activation(activation)
    problem = make_problem(x, routing, down=down, activation=activation, gated=gated)
    operands = [
        None if operand is None else operand.contiguous()
        for operand in (x, routing.weights, up, down, up_bias, down_bias)
    ]
    # Within the function grad mode is always off, and without gradients what they need is not worth storing.
    keep = torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        out: Tensor = _Experts.apply(*operands, problem, keep)  # type: ignore[no-untyped-call]
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, up_bias: Tensor | None,
        down_bias: Tensor | None, problem: Problem, keep: bool,
    ) -> Tensor:  # fmt: skip
        R, (D, F) = problem.copies, problem.widths
        before = torch.empty(R if keep else 0, problem.up, dtype=problem.stored, device=x.device)
        inner = torch.empty(R, F, dtype=problem.stored, device=x.device)
        _EXPAND[_grid(problem, problem.up)](
            x, problem.order.tokens, problem.order.ends, up, up_bias, before, inner, problem.num_experts,
            D=D, F=F, GATED=problem.gated, ACTIVATION=problem.activation, KEEP=keep, **problem.constants,
        )  # fmt: skip
        copies = _bring_home(inner, down, problem, bias=down_bias, weights=weights, flipped=False)
        if keep:
            ctx.save_for_backward(x, weights, up, down, down_bias, before)
            ctx.problem, ctx.has_up_bias = problem, up_bias is not None
        return _sum_copies(copies, problem)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, down_bias, before = ctx.saved_tensors
        problem: Problem = ctx.problem
        need_x, need_weights, need_up, need_down, need_up_bias, need_down_bias, _, _ = ctx.needs_input_grad
        x_grad = weight_grad = up_grad = down_grad = up_bias_grad = down_bias_grad = None
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            out_grad = out_grad.contiguous()
            before_grad, weighted, parts = _expand_backward(out_grad, weights, down, down_bias, before, problem)
            if need_weights:
                weight_grad = torch.zeros(weights.numel(), dtype=parts.dtype, device=x.device)
                weight_grad = weight_grad.index_copy_(0, problem.order.slots, parts.sum(0)).view_as(weights)
            if need_down or need_down_bias:
                down_grad, down_bias_grad = _add_outer(
                    out_grad, weighted, problem, scales=weights, has_bias=down_bias is not None
                )
            if need_up or need_up_bias:
                up_grad, up_bias_grad = _add_outer(before_grad, x, problem, scales=None, has_bias=ctx.has_up_bias)
            if need_x:
                copies = _bring_home(before_grad, up, problem, bias=None, weights=None, flipped=True)
                x_grad = _sum_copies(copies, problem)
        weight_grad = None if weight_grad is None else weight_grad.to(weights.dtype)
        return x_grad, weight_grad, up_grad, down_grad, up_bias_grad, down_bias_grad, None, None


def _grid(problem: Problem, columns: int) -> Any:
    """Tiles of rows, each with all its blocks of columns side by side, which share the rows in the cache."""
    return lambda choice: (problem.tiles * triton.cdiv(columns, choice["COLUMNS"]),)


def _bring_home(
    rows: Tensor, matrix: Tensor, problem: Problem, *, bias: Tensor | None, weights: Tensor | None, flipped: bool
) -> Tensor:
    """Sorted rows through their experts' matrices, at the places of their slots; nothing at padding."""
    width, order = problem.widths[0], problem.order
    copies = torch.empty(problem.experts.numel(), width, dtype=problem.stored, device=rows.device)
    _BRING_HOME[_grid(problem, width)](
        rows, order.slots, order.ends, matrix, bias, weights, copies, problem.num_experts,
        IN=rows.shape[1], OUT=width, FLIPPED=flipped, **problem.constants,
    )  # fmt: skip
    return copies


def _sum_copies(copies: Tensor, problem: Problem) -> Tensor:
    tokens, per_token = problem.experts.shape
    width = problem.widths[0]
    out = torch.empty(tokens, width, dtype=problem.stored, device=copies.device)
    rows, columns = 8, min(256, int(triton.next_power_of_2(width)))
    sum_copies[(triton.cdiv(tokens, rows), triton.cdiv(width, columns))](
        copies, problem.experts, out, tokens, problem.num_experts, D=width, PER_TOKEN=per_token, TOKENS=rows,
        COLUMNS=columns, WIDE=problem.wide_type, num_warps=4,
    )  # fmt: skip
    return out.to(problem.dtype)


def _expand_backward(
    out_grad: Tensor, weights: Tensor, down: Tensor, down_bias: Tensor | None, before: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of what the activation saw, weighted inner values, and the routing weights' gradient in parts."""
    R, (D, F), order = problem.copies, problem.widths, problem.order
    before_grad = torch.empty_like(before)
    weighted = torch.empty(R, F, dtype=problem.stored, device=before.device)
    # The width is not tuned, because the parts are laid out by it.
    columns = 32 if INTERPRETED else 128 if problem.dtype.itemsize == 2 else 64
    blocks = triton.cdiv(F, columns)
    parts = torch.empty(blocks, R, dtype=problem.wide, device=before.device)
    _EXPAND_BACKWARD[(problem.tiles * blocks,)](
        out_grad, order.tokens, order.slots, order.ends, down, down_bias, weights, before, before_grad, weighted, parts,
        R, problem.num_experts, D=D, F=F, COLUMNS=columns, GATED=problem.gated, ACTIVATION=problem.activation,
        **problem.constants,
    )  # fmt: skip
    return before_grad, weighted, parts


def _add_outer(
    left: Tensor, right: Tensor, problem: Problem, *, scales: Tensor | None, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of stacked matrices and of their biases; with scales, left lies by token and right is sorted."""
    order, experts, sides = problem.order, problem.num_experts, (left.shape[1], right.shape[1])
    grad = torch.empty(experts, *sides, dtype=problem.stored, device=left.device)
    bias_grad = torch.empty(experts, sides[0], dtype=problem.stored, device=left.device) if has_bias else None

    def grid(choice: dict[str, Any]) -> tuple[int]:  # all of the kernel's arguments, by name
        return (experts * triton.cdiv(sides[0], choice["ROWS"]) * triton.cdiv(sides[1], choice["COLUMNS"]),)

    _ADD_OUTER[grid](
        left, right, order.tokens, order.slots, order.ends, scales, grad, bias_grad, OUT=sides[0], IN=sides[1],
        LEFT_BY_TOKEN=scales is not None, DOT=problem.product_type, WIDE=problem.wide_type,
    )  # fmt: skip
    return grad.to(problem.dtype), None if bias_grad is None else bias_grad.to(problem.dtype)


def _tuned(kernel: Any, choices: list[dict[str, int]], *, interpreted: dict[str, int], key: list[str]) -> Any:
    """Let a GPU pick blocks, warps and stages by widths, types and length of tiles; the interpreter has one way."""
    if INTERPRETED:
        return triton.autotune([triton.Config(interpreted)], key=[])(kernel)
    configs = [
        triton.Config(
            {name: value for name, value in choice.items() if name.isupper()},
            num_warps=choice["warps"],
            num_stages=choice["stages"],
        )
        for choice in choices
    ]
    return triton.autotune(configs, key=key)(kernel)


# A group of four warps multiplies 64 rows at once on Hopper; 128 x 128 sums fill half of four warps' registers.
_PRODUCTS = [
    {"COLUMNS": 128, "DEPTH": 64, "warps": 4, "stages": 3},
    {"COLUMNS": 128, "DEPTH": 64, "warps": 8, "stages": 4},
    {"COLUMNS": 256, "DEPTH": 64, "warps": 8, "stages": 3},
    {"COLUMNS": 64, "DEPTH": 64, "warps": 4, "stages": 4},
]
_EXPAND = _tuned(
    expand, _PRODUCTS, interpreted={"COLUMNS": 16, "DEPTH": 32}, key=["D", "F", "GATED", "KEEP", "ROWS"]
)  # fmt: skip
_BRING_HOME = _tuned(
    bring_home, _PRODUCTS, interpreted={"COLUMNS": 16, "DEPTH": 32}, key=["IN", "OUT", "FLIPPED", "ROWS"]
)  # fmt: skip
_EXPAND_BACKWARD = _tuned(
    expand_backward,
    [
        {"DEPTH": 64, "warps": 4, "stages": 3},
        {"DEPTH": 64, "warps": 8, "stages": 3},
        {"DEPTH": 64, "warps": 8, "stages": 4},
        {"DEPTH": 32, "warps": 4, "stages": 4},
    ],
    interpreted={"DEPTH": 32},
    key=["D", "F", "GATED", "ROWS"],
)
_ADD_OUTER = _tuned(
    add_outer,
    [
        {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "warps": 8, "stages": 3},
        {"ROWS": 128, "COLUMNS": 128, "DEPTH": 32, "warps": 4, "stages": 4},
        {"ROWS": 128, "COLUMNS": 256, "DEPTH": 64, "warps": 8, "stages": 3},
        {"ROWS": 64, "COLUMNS": 128, "DEPTH": 64, "warps": 4, "stages": 3},
    ],
    interpreted={"ROWS": 16, "COLUMNS": 16, "DEPTH": 32},
    key=["OUT", "IN", "LEFT_BY_TOKEN"],
)
