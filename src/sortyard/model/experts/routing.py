"""What an expert layer reports about the decisions it took."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class RoutingRecord(NamedTuple):
    """One layer's routing of one batch, N = B * T tokens.

    A tuple of tensors, so that it passes through activation checkpointing and parallel wrappers, which only see
    tensors inside plain containers. Statistics travel here; a forward pass never changes a counter.

    Attributes:
        scores: gate scores before selection, in (0, 1).
        experts: chosen experts of each token; E where the token is padding.
        weights: weights of the chosen experts; 0 where the token is padding.
        loads: number of routed copies per expert, padding excluded, detached.
        balance: balance loss, already times its coefficient.
    """

    scores: Float[Tensor, "N E"]
    experts: Int[Tensor, "N k"]
    weights: Float[Tensor, "N k"]
    loads: Float[Tensor, " E"]
    balance: Float[Tensor, ""]
