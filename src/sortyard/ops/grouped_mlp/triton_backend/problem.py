"""One call as the launchers see it: the sorted copies, sizes and number types; no value comes to the host."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.expert_dispatch import Dispatch, Routing, sort_copies
from sortyard.ops.grouped_mlp.triton_backend.activation_kernels import KERNEL_NAMES
from sortyard.ops.grouped_mlp.triton_backend.tile_kernels import INTERPRETED


@dataclass(frozen=True)
class Problem:
    """What all launches of a call share.

    Args:
        order: The copies in the order of their experts.
        experts: Experts of each token, E at padding.
        num_experts: Number of experts E.
        widths: Width D of the tokens, and F of the activated inner values.
        activation: The kernels' name of the activation.
        gated: Whether experts are gated.
        dtype: Of tokens and matrices.
    """

    order: Dispatch
    experts: Int[Tensor, "N k"]
    num_experts: int
    widths: tuple[int, int]
    activation: str
    gated: bool
    dtype: torch.dtype

    @property
    def copies(self) -> int:
        """Number of routed copies R."""
        return len(self.order.slots)

    @property
    def up(self) -> int:
        """Rows of an inward matrix: F, or 2F when gated."""
        return self.widths[1] * (2 if self.gated else 1)

    @property
    def rows(self) -> int:
        """Copies of a tile: fewer where runs are short, or where operands fill twice the registers."""
        if INTERPRETED:
            return 16
        return 128 if self.dtype.itemsize == 2 and self.copies >= 128 * self.num_experts else 64

    @property
    def tiles(self) -> int:
        """Most tiles that runs of any lengths can need; those too many find no expert and end."""
        return (self.copies + self.num_experts * (self.rows - 1)) // self.rows

    @property
    def wide(self) -> torch.dtype:
        """Of sums."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def stored(self) -> torch.dtype:
        """Of what kernels write as the inputs are; the interpreter cuts float32 off where it must be rounded."""
        return self.wide if INTERPRETED else self.dtype

    @property
    def wide_type(self) -> tl.dtype:
        """The kernels' name of `wide`."""
        return tl.float64 if self.wide == torch.float64 else tl.float32

    @property
    def product_type(self) -> tl.dtype:
        """What matrix products take; the interpreter cannot multiply bfloat16."""
        if INTERPRETED or self.wide == self.dtype:
            return self.wide_type
        return tl.bfloat16 if self.dtype == torch.bfloat16 else tl.float16

    @property
    def constants(self) -> dict[str, object]:
        """What every kernel that looks for its expert takes."""
        return {
            "EP": max(2, int(triton.next_power_of_2(self.num_experts))), "ROWS": self.rows, "DOT": self.product_type,
            "WIDE": self.wide_type,
        }  # fmt: skip


def make_problem(
    x: Float[Tensor, "N D"], routing: Routing, *, down: Float[Tensor, "E D F"], activation: str, gated: bool
) -> Problem:
    """Sort the copies and gather what the launches need.

    Args:
        x: Token vectors.
        routing: Who processes which token.
        down: Outward matrices.
        activation: Transformers name of the activation, a known one.
        gated: Whether experts are gated.

    Returns:
        The problem.
    """
    num_experts, hidden, inner = down.shape
    return Problem(
        sort_copies(routing), routing.experts.contiguous(), num_experts, (hidden, inner), KERNEL_NAMES[activation],
        gated, x.dtype,
    )  # fmt: skip
