"""The value that a router hands to the experts."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Which experts process each of N tokens, and with which weights.

    Attributes:
        experts: chosen experts, 0 to E - 1; E (nobody) at padding.
        weights: weight of each chosen expert; 0 at padding.
        scores: gate scores before selection.
        loads: routed copies per expert, padding excluded; counts, detached.
        num_tokens: real tokens among the N, a host integer so that dispatch need not wait for the device.
    """

    experts: Int[Tensor, "N k"]
    weights: Float[Tensor, "N k"]
    scores: Float[Tensor, "N E"]
    loads: Float[Tensor, " E"]
    num_tokens: int

    @property
    def fractions(self) -> Float[Tensor, " E"]:
        """Share of the routed copies that each expert got; zeros when nothing was routed."""
        return self.loads / self.loads.sum().clamp(min=1.0)
