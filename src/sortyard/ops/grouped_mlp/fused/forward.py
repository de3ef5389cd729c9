"""The forward pass of the experts' nets, one expert at a time; outside autograd."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.grouped_mlp.activations import activate_into
from sortyard.ops.grouped_mlp.fused.pages import advise_huge_pages
from sortyard.ops.grouped_mlp.fused.rows import combine_copies, gather_rows, linear_into, new_copies
from sortyard.ops.grouped_mlp.fused.runs import max_rows, sort_runs


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
    """Say whether runs of this type are rounded up to few different lengths.

    oneDNN, which multiplies the half types, compiles and keeps a kernel for every shape it meets, and row counts
    change with every batch.
    """
    return dtype in (torch.bfloat16, torch.float16)


def num_kept(x: Float[Tensor, "N D"], experts: Int[Tensor, "N k"], up: Float[Tensor, "E up D"]) -> int | torch.SymInt:
    """Bound the rows of inner values that forward keeps for backward."""
    return max_rows(experts.numel(), num_experts=len(up), rounded=rounds_rows(x.dtype))


def run_forward(
    x: Float[Tensor, "N D"], experts: Int[Tensor, "N k"], weights: Float[Tensor, "N k"], net: Net, *, keep: bool
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "rows up"]]:
    """Compute the mixed outputs.

    Args:
        x: token vectors, in the type to compute in.
        experts: expert of each slot; E where nobody's.
        weights: weight of each slot.
        net: the experts.
        keep: whether backward will follow.

    Returns:
        The outputs, and the inner values, before activation, that backward reads; no rows of them without `keep`. Rows
        behind the last run are never written.
    """
    order = sort_runs(experts, num_experts=len(net.up), rounded=rounds_rows(x.dtype))
    width, longest = net.up.shape[1], max((run.size for run in order.runs), default=0)
    rows, activated = x.new_empty(longest, x.shape[1]), x.new_empty(longest, net.down.shape[2])
    kept = advise_huge_pages(x.new_empty(num_kept(x, experts, net.up) if keep else 0, width))
    scratch = x.new_empty(0 if keep else longest, width)
    copies = advise_huge_pages(new_copies(x, order))
    for run in order.runs:
        place = slice(run.first, run.first + run.size)
        inner = kept[place] if keep else scratch[: run.size]
        number = run.expert
        linear_into(inner, gather_rows(x, run, rows), net.up[number], _row(net.up_bias, number))
        activate_into(activated[: run.size], inner, activation=net.activation, gated=net.gated)
        linear_into(copies[place], activated[: run.size], net.down[number], _row(net.down_bias, number))
    return combine_copies(copies, order, weights), kept


def _row(bias: Float[Tensor, "E O"] | None, expert: int) -> Float[Tensor, " O"] | None:
    return None if bias is None else bias[expert]
