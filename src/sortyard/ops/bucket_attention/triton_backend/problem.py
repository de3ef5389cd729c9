"""One group's call as the launchers see it: sizes, small device tensors and number types."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.triton_backend.plan import Plan, make_plan, plan_table
from sortyard.ops.bucket_attention.triton_backend.row_kernels import INTERPRETED


@dataclass(frozen=True)
class Problem:
    """What all launches of a call share.

    Args:
        spec: The attention's settings.
        plan: The tree's static sizes.
        table: The plan on the device.
        far_heights: Height of each summary's column.
        lengths: Real tokens of each sequence.
        globals_at: Positions of the global tokens, -1 at places without one.
        shape: Sequences S, heads H, longest length n, head width K.
        dtype: Of queries, keys and values.
        causal: Whether a query sees only keys at or before it.
    """

    spec: BucketSpec
    plan: Plan
    table: Int[Tensor, "heights 5"]
    far_heights: Int[Tensor, " far"]
    lengths: Int[Tensor, " S"]
    globals_at: Int[Tensor, "S g"]
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    causal: bool

    @property
    def pairs(self) -> int:
        """Sequences times heads."""
        return self.shape[0] * self.shape[1]

    @property
    def chunks(self) -> int:
        """Query chunks of the longest sequence."""
        return -(-self.shape[2] // self.spec.query_chunk)

    @property
    def width(self) -> int:
        """Head width K up to the next power of two, at least 16: the smallest tile of a matrix unit."""
        return max(16, int(triton.next_power_of_2(self.shape[3])))

    @property
    def wide(self) -> torch.dtype:
        """Of sums, means and scores."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def turns_to_queries(self) -> bool:
        """Whether the queries' moments weigh the splits' directions."""
        return not self.causal and self.spec.split == "queries" and self.spec.power_steps > 0

    @property
    def adds_spread(self) -> bool:
        """Whether the log of a node's spread adds to its score."""
        return not self.causal and self.spec.score == "spread"

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


def make_problem(
    shape: tuple[int, int, int, int],
    spec: BucketSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
    causal: bool,
) -> Problem:
    """Gather what the launches need; no value comes to the host.

    Args:
        shape: Sequences S, heads H, longest length n, head width K.
        spec: The attention's settings.
        dtype: Of queries, keys and values.
        device: Where they lie.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The problem.
    """
    assert isinstance(group.shape, TreeShape)
    plan = make_plan(group.shape, shape[2], query_chunk=spec.query_chunk, causal=causal)
    table, far_heights = plan_table(plan, device)
    lengths = group.real.sum(-1, dtype=torch.int32)
    globals_at = group.globals_at.to(torch.int32).contiguous()
    return Problem(spec, plan, table, far_heights, lengths, globals_at, shape, dtype, causal)
