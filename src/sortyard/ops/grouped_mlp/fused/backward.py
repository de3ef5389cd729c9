"""The backward pass of the experts' nets, one expert at a time; outside autograd."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.grouped_mlp.activations import activate_into, activation_gradient_into
from sortyard.ops.grouped_mlp.fused.forward import Net, rounds_rows
from sortyard.ops.grouped_mlp.fused.pages import advise_huge_pages
from sortyard.ops.grouped_mlp.fused.rows import combine_copies, gather_rows, multiply_into, new_copies
from sortyard.ops.grouped_mlp.fused.runs import Run, Runs, sort_runs


class Needs(NamedTuple):
    """Which operands a gradient is asked for."""

    x: bool
    weights: bool
    up: bool
    down: bool
    up_bias: bool
    down_bias: bool

    @property
    def inner(self) -> bool:
        """Whether the gradient goes through the activation."""
        return self.x or self.up or self.up_bias


class Gradients(NamedTuple):
    """The operands' gradients; no elements where none is asked for."""

    x: Tensor
    weights: Tensor
    up: Tensor
    down: Tensor
    up_bias: Tensor
    down_bias: Tensor


class _Scratch(NamedTuple):
    """Memory for the longest run, used by one expert after the other."""

    rows: Float[Tensor, "longest D"]
    activated: Float[Tensor, "longest F"]
    grad_activated: Float[Tensor, "longest F"]
    grad_inner: Float[Tensor, "longest up"]


def run_backward(
    grad: Float[Tensor, "N D"],
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N k"],
    weights: Float[Tensor, "N k"],
    kept: Float[Tensor, "rows up"],
    net: Net,
    *,
    needs: Needs,
) -> Gradients:
    """Compute the gradients.

    Args:
        grad: gradient of the outputs.
        x: token vectors.
        experts: expert of each slot; E where nobody's.
        weights: weight of each slot.
        kept: the inner values that forward kept.
        net: the experts.
        needs: which gradients are asked for.

    Returns:
        The gradients.
    """
    order = sort_runs(experts, num_experts=len(net.up), rounded=rounds_rows(x.dtype))
    # The tokens' gradient comes last, as the sum of its copies, and needs no room before.
    found = new_gradients(x, weights, net, needs=needs._replace(x=False))
    for gradient in found:
        advise_huge_pages(gradient)
    found.weights.zero_()  # slots of nobody
    copies = advise_huge_pages(new_copies(x, order)) if needs.x else x.new_empty(0, x.shape[1])
    scratch = _new_scratch(x, order, net)
    for run in order.runs:
        inner = kept[run.first : run.first + run.size]
        _through_down(run, inner, grad, weights, net, found=found, needs=needs, scratch=scratch)
        if needs.inner:
            _through_up(run, inner, x, net, found=found, copies=copies, needs=needs, scratch=scratch)
    _clear_idle(order, found)
    return found._replace(x=combine_copies(copies, order, None)) if needs.x else found


def new_gradients(x: Float[Tensor, "N D"], weights: Float[Tensor, "N k"], net: Net, *, needs: Needs) -> Gradients:
    """Make room for the gradients.

    Args:
        x: token vectors.
        weights: weight of each slot.
        net: the experts.
        needs: which gradients are asked for.

    Returns:
        Uninitialised memory in the operands' shapes and types; no elements for what is not asked for.
    """

    def room(operand: Tensor | None, *, needed: bool) -> Tensor:
        return x.new_empty(0) if operand is None or not needed else operand.new_empty(operand.shape)

    operands = (x, weights, net.up, net.down, net.up_bias, net.down_bias)
    return Gradients(*(room(operand, needed=needed) for operand, needed in zip(operands, needs, strict=True)))


def _new_scratch(x: Tensor, order: Runs, net: Net) -> _Scratch:
    longest = max((run.size for run in order.runs), default=0)
    hidden, inner = net.down.shape[1:]
    # A gated expert's inner values are wider than its activated ones; otherwise one gradient replaces the other.
    activated, gradient = x.new_empty(longest, inner), x.new_empty(longest, inner)
    wide = x.new_empty(longest, net.up.shape[1]) if net.gated else gradient
    return _Scratch(x.new_empty(longest, hidden), activated, gradient, wide)


def _through_down(
    run: Run,
    inner: Float[Tensor, "r up"],
    grad: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    net: Net,
    *,
    found: Gradients,
    needs: Needs,
    scratch: _Scratch,
) -> None:
    """From the outputs' gradient g to that of the activated values a, w (g down), left in the scratch memory."""
    count, size, expert = len(run.slots), run.size, run.expert
    activated, grad_activated = scratch.activated[:size], scratch.grad_activated[:size]
    rows = gather_rows(grad, run, scratch.rows)
    activate_into(activated, inner, activation=net.activation, gated=net.gated)
    multiply_into(grad_activated, rows, net.down[expert])
    scales = rows.new_zeros(size, 1)
    scales[:count, 0] = weights.flatten()[run.slots]
    if needs.weights:
        # <g, down a + b> = <g down, a> + <g, b>: the outputs need not be kept.
        along = torch.linalg.vecdot(grad_activated, activated)
        along = along if net.down_bias is None else along.addmv(rows, net.down_bias[expert].to(rows.dtype))
        found.weights.view(-1)[run.slots] = along[:count].to(weights.dtype)
    if needs.down or needs.down_bias:
        rows.mul_(scales)
    if needs.down:
        multiply_into(found.down[expert], rows.t(), activated)
    if needs.down_bias:
        found.down_bias[expert] = rows.sum(dim=0)
    grad_activated.mul_(scales)


def _through_up(
    run: Run,
    inner: Float[Tensor, "r up"],
    x: Float[Tensor, "N D"],
    net: Net,
    *,
    found: Gradients,
    copies: Float[Tensor, "rows D"],
    needs: Needs,
    scratch: _Scratch,
) -> None:
    """From the activated values' gradient to the tokens'."""
    size, expert = run.size, run.expert
    grad_inner = scratch.grad_inner[:size]
    activation_gradient_into(
        grad_inner, scratch.grad_activated[:size], inner, activation=net.activation, gated=net.gated
    )
    if needs.up:
        multiply_into(found.up[expert], grad_inner.t(), gather_rows(x, run, scratch.rows))
    if needs.up_bias:
        found.up_bias[expert] = grad_inner.sum(dim=0)
    if needs.x:
        multiply_into(copies[run.first : run.first + size], grad_inner, net.up[expert])


def _clear_idle(order: Runs, found: Gradients) -> None:
    for gradient in (found.up, found.down, found.up_bias, found.down_bias):
        if gradient.numel():
            for expert in order.idle:
                gradient[expert].zero_()
