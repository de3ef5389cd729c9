"""Dispatch by one stable sort: every token's copies lie expert after expert, none is dropped."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.expert_dispatch.routing import Routing


@dataclass(frozen=True)
class Dispatch:
    """The order in which R = num_tokens * k routed copies lie when sorted by expert.

    Attributes:
        slots: flattened index n * k + j of each sorted copy.
        tokens: token n of each sorted copy.
        experts: expert of each sorted copy, rising.
        ends: end of each expert's run within the R copies.
    """

    slots: Int[Tensor, " R"]
    tokens: Int[Tensor, " R"]
    experts: Int[Tensor, " R"]
    ends: Int[Tensor, " E"]


def sort_copies(routing: Routing) -> Dispatch:
    """Sort the routed copies by expert; copies of one expert keep the order of their tokens.

    Args:
        routing: the router's choice.

    Returns:
        The sorted order, padding left out.
    """
    per_token, num_experts = routing.experts.shape[1], routing.loads.shape[0]
    flat = routing.experts.flatten()
    ordered, order = flat.sort(stable=True)
    # Padding carries the highest index, E, and so lies behind all real copies.
    real = routing.num_tokens * per_token
    slots, experts = order[:real], ordered[:real]
    every = torch.arange(num_experts, device=flat.device)
    ends = torch.searchsorted(experts, every, right=True, out_int32=True)
    return Dispatch(slots, slots // per_token, experts, ends)


def dispatch(x: Float[Tensor, "N D"], order: Dispatch) -> Float[Tensor, "R D"]:
    """Copy every token to the places its experts read from.

    Args:
        x: token vectors.
        order: the sorted order.

    Returns:
        One row per routed copy, expert after expert.
    """
    return x.index_select(0, order.tokens)


def combine(copies: Float[Tensor, "R D"], order: Dispatch, *, weights: Float[Tensor, "N k"]) -> Float[Tensor, "N D"]:
    """Bring the processed copies home and add each token's, weighted.

    Args:
        copies: one row per routed copy, in sorted order.
        order: the sorted order.
        weights: weight of every slot; slots that were not routed count nothing.

    Returns:
        The weighted sum of each token's copies; zeros for padding.
    """
    num_tokens, _ = weights.shape
    scaled = copies * weights.flatten().index_select(0, order.slots)[:, None].to(copies.dtype)
    return copies.new_zeros(num_tokens, copies.shape[1]).index_add(0, order.tokens, scaled)
