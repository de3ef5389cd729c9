"""The backward pass of the experts' nets, a batch of experts at a time; outside autograd."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.grouped_mlp.activations import activate_into, activation_gradient_into
from sortyard.ops.grouped_mlp.fused.batches import Batch, Batches
from sortyard.ops.grouped_mlp.fused.forward import Net, sort_by_expert
from sortyard.ops.grouped_mlp.fused.rows import (
    by_expert,
    combine_copies,
    gather_rows,
    multiply_into,
    new_copies,
    with_zero_row,
)


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


class _Rows(NamedTuple):
    """What all batches read and write, row by row, and scratch memory for the largest of them.

    Attributes:
        x: token vectors, and a row of zeros; only where the inward matrices get a gradient.
        grad: gradient of the outputs, and a row of zeros.
        weights: weight of each row; 0 for padding.
        along: <g, o> of each row, the gradient of its weight; a last element for nobody's slots.
        copies: gradients of the gathered tokens.
        gathered: scratch.
        activated: scratch.
        grad_activated: scratch.
        grad_inner: scratch.
    """

    x: Float[Tensor, "N1 D"]
    grad: Float[Tensor, "N1 D"]
    weights: Float[Tensor, " rows"]
    along: Float[Tensor, " rows1"]
    copies: Float[Tensor, "rows1 D"]
    gathered: Float[Tensor, "longest D"]
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
    order = sort_by_expert(experts, net, dtype=x.dtype)
    # The gradients of tokens and weights are collected from the rows at last, and need no room before.
    found = new_gradients(x, weights, net, needs=needs._replace(x=False, weights=False))
    rows = _new_rows(grad, x, weights, order, net, needs=needs)
    for batch in order.batches:
        inner = by_expert(kept[batch.rows], batch)
        _through_down(batch, inner, order, net, found=found, needs=needs, rows=rows)
        if needs.inner:
            _through_up(batch, inner, order, net, found=found, needs=needs, rows=rows)
    if needs.weights:
        found = found._replace(weights=rows.along[order.places].to(weights.dtype))
    return found._replace(x=combine_copies(rows.copies, order, None)) if needs.x else found


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


def _new_rows(
    grad: Float[Tensor, "N D"],
    x: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    order: Batches,
    net: Net,
    *,
    needs: Needs,
) -> _Rows:
    hidden, inner = net.down.shape[1:]
    weight_of = x.new_zeros(order.num_rows + 1)
    weight_of[order.places] = weights.to(x.dtype)
    # A gated expert's inner values are wider than its activated ones; otherwise one gradient replaces the other.
    activated, grad_activated = x.new_empty(order.longest, inner), x.new_empty(order.longest, inner)
    return _Rows(
        with_zero_row(x) if needs.up else x.new_empty(0, hidden),
        with_zero_row(grad),
        weight_of[: order.num_rows],
        x.new_zeros(order.num_rows + 1),
        new_copies(x, order) if needs.x else x.new_empty(0, hidden),
        x.new_empty(order.longest, hidden),
        activated,
        grad_activated,
        x.new_empty(order.longest, net.up.shape[1]) if net.gated else grad_activated,
    )


def _through_down(
    batch: Batch,
    inner: Float[Tensor, "c r up"],
    order: Batches,
    net: Net,
    *,
    found: Gradients,
    needs: Needs,
    rows: _Rows,
) -> None:
    """From the outputs' gradient g to that of the activated values a, w (g down), left in the scratch memory."""
    count, chosen = batch.num_rows, batch.experts
    activated, grad_activated = (by_expert(part[:count], batch) for part in (rows.activated, rows.grad_activated))
    grads = gather_rows(rows.grad, order, batch, rows.gathered)
    activate_into(activated, inner, activation=net.activation, gated=net.gated)
    multiply_into(grad_activated, grads, net.down[chosen])
    weights = by_expert(rows.weights[batch.rows, None], batch)
    if needs.weights:
        # <g, down a + b> = <g down, a> + <g, b>: the outputs need not be kept.
        along = torch.linalg.vecdot(grad_activated, activated)
        if net.down_bias is not None:
            bias = net.down_bias[chosen].to(grads.dtype).unsqueeze(-1)
            along = along.unsqueeze(-1).baddbmm(grads, bias).squeeze(-1)
        rows.along[batch.rows] = along.flatten()
    if needs.down or needs.down_bias:
        grads.mul_(weights)
    if needs.down:
        multiply_into(found.down[chosen], grads.transpose(1, 2), activated)
    if needs.down_bias:
        found.down_bias[chosen] = grads.sum(dim=1)
    grad_activated.mul_(weights)


def _through_up(
    batch: Batch,
    inner: Float[Tensor, "c r up"],
    order: Batches,
    net: Net,
    *,
    found: Gradients,
    needs: Needs,
    rows: _Rows,
) -> None:
    """From the activated values' gradient to the tokens'."""
    count, chosen = batch.num_rows, batch.experts
    grad_activated, grad_inner = (by_expert(part[:count], batch) for part in (rows.grad_activated, rows.grad_inner))
    activation_gradient_into(grad_inner, grad_activated, inner, activation=net.activation, gated=net.gated)
    if needs.up:
        multiply_into(found.up[chosen], grad_inner.transpose(1, 2), gather_rows(rows.x, order, batch, rows.gathered))
    if needs.up_bias:
        found.up_bias[chosen] = grad_inner.sum(dim=1)
    if needs.x:
        multiply_into(by_expert(rows.copies[batch.rows], batch), grad_inner, net.up[chosen])
