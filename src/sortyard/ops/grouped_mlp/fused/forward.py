"""The forward pass of the experts' nets, a batch of experts at a time; outside autograd."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.grouped_mlp.activations import activate_into
from sortyard.ops.grouped_mlp.fused.batches import Batches, sort_batches
from sortyard.ops.grouped_mlp.fused.rows import (
    by_expert,
    combine_copies,
    gather_rows,
    linear_into,
    new_copies,
    with_zero_row,
)

# Multiplications of a matrix product from which its threads lose no time on each other.
_BUSY = 1 << 26


@dataclass(frozen=True)
class Net:
    """The experts' stacked weights, of any floating type, and what happens between them."""

    up: Float[Tensor, "E up D"]
    down: Float[Tensor, "E D F"]
    up_bias: Float[Tensor, "E up"] | None
    down_bias: Float[Tensor, "E D"] | None
    activation: str
    gated: bool


def rounds_rows(dtype: torch.dtype) -> bool:
    """Say whether an expert's rows of this type are rounded up to few different numbers.

    oneDNN, which multiplies the half types, compiles and keeps a kernel for every shape it meets, and row counts
    change with every batch.
    """
    return dtype in (torch.bfloat16, torch.float16)


def sort_by_expert(experts: Int[Tensor, "N k"], net: Net, *, dtype: torch.dtype) -> Batches:
    """Sort slots by expert, in the batches that this net should be computed in.

    Args:
        experts: expert of each slot; E where nobody's.
        net: the experts.
        dtype: the type to compute in.

    Returns:
        The batches.
    """
    num_experts, width, hidden = net.up.shape
    alone_from = _BUSY // (width * hidden)
    return sort_batches(experts, num_experts=num_experts, rounded=rounds_rows(dtype), alone_from=alone_from)


def run_forward(
    x: Float[Tensor, "N D"],
    experts: Int[Tensor, "N k"],
    weights: Float[Tensor, "N k"],
    net: Net,
    *,
    kept_rows: int | None,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "rows up"]]:
    """Compute the mixed outputs.

    Args:
        x: token vectors, in the type to compute in.
        experts: expert of each slot; E where nobody's.
        weights: weight of each slot.
        net: the experts.
        kept_rows: where backward will follow, what `max_rows` says.

    Returns:
        The outputs, and the inner values, before activation, that backward reads: `kept_rows` of them, of which those
        behind the last batch are never written.
    """
    order = sort_by_expert(experts, net, dtype=x.dtype)
    width, padded = net.up.shape[1], with_zero_row(x)
    rows, activated = x.new_empty(order.longest, x.shape[1]), x.new_empty(order.longest, net.down.shape[2])
    kept = x.new_empty(kept_rows or 0, width)
    scratch = x.new_empty(order.longest if kept_rows is None else 0, width)
    copies = new_copies(x, order)
    for batch in order.batches:
        inner = by_expert(scratch[: batch.num_rows] if kept_rows is None else kept[batch.rows], batch)
        outer = by_expert(activated[: batch.num_rows], batch)
        chosen = batch.experts
        linear_into(inner, gather_rows(padded, order, batch, rows), net.up[chosen], _part(net.up_bias, chosen))
        activate_into(outer, inner, activation=net.activation, gated=net.gated)
        linear_into(by_expert(copies[batch.rows], batch), outer, net.down[chosen], _part(net.down_bias, chosen))
    return combine_copies(copies, order, weights), kept


def _part(bias: Float[Tensor, "E O"] | None, experts: slice) -> Float[Tensor, "c O"] | None:
    return None if bias is None else bias[experts]
