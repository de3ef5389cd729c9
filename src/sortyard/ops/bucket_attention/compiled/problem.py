"""One call's shape as the C++ side reads it."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.compiled.library import num_threads
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.bucket_attention.spec import BucketSpec

_FIELDS = (
    *("sequences", "heads", "length", "width", "levels", "bucket_size", "leaves", "heights", "near", "beam", "far"),
    *("chunk", "chunks", "window", "globals", "power_steps", "by_queries", "by_spread", "causal", "threads"),
)


class CProblem(ctypes.Structure):
    """`struct Problem` of kernels.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS] + [
        (name, ctypes.c_void_p) for name in ("lengths", "far_heights", "globals_at")
    ]


@dataclass(frozen=True)
class Problem:
    """The numbers of a call, and the tensors that its C view points to.

    Args:
        numbers: Every field of `_FIELDS`.
        lengths: Real tokens of each sequence.
        far_heights: Height of each place of a summary, falling.
        globals_at: Positions of the global tokens, -1 = none.
    """

    numbers: dict[str, int]
    lengths: Int[Tensor, " S"]
    far_heights: Int[Tensor, " F"]
    globals_at: Int[Tensor, "S g"]

    def ordered(self) -> list[int]:
        """The numbers in the order of `_FIELDS`."""
        return [self.numbers[name] for name in _FIELDS]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors in the order of the fields."""
        return self.lengths, self.far_heights, self.globals_at

    def to_c(self) -> CProblem:
        """The C view; valid while this value lives."""
        return CProblem(*self.ordered(), *(x.data_ptr() for x in self.tensors()))

    def num_nodes(self) -> int:
        """Nodes of all heights."""
        return sum(self.numbers["leaves"] >> height for height in range(self.numbers["heights"]))


def restore_problem(numbers: Sequence[int], *tensors: Tensor) -> Problem:
    """The problem whose `ordered` and `tensors` returned these."""
    return Problem(dict(zip(_FIELDS, numbers, strict=True)), *tensors)


def make_problem(q: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool) -> Problem:
    """The shape of a call.

    Args:
        q: Queries.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The shape.
    """
    shape = group.shape
    assert isinstance(shape, TreeShape)
    S, H, n, K = q.shape
    leaves, heights = 2**shape.levels, shape.levels
    if causal:
        leaves = (n - 1) // spec.query_chunk * spec.query_chunk // shape.bucket_size
        heights = leaves.bit_length()
    far = far_heights(shape, heights, causal=causal)
    numbers = {
        "sequences": S,
        "heads": H,
        "length": n,
        "width": K,
        "levels": shape.levels,
        "bucket_size": shape.bucket_size,
        "leaves": leaves,
        "heights": heights,
        "near": min(shape.near, leaves, 2 * shape.beam + int(causal)),
        "beam": shape.beam,
        "far": len(far),
        "chunk": spec.query_chunk,
        "chunks": -(-n // spec.query_chunk),
        "window": min(spec.local_window, n),
        "globals": group.globals_at.shape[-1],
        "power_steps": spec.power_steps,
        "by_queries": int(spec.split == "queries"),
        "by_spread": int(spec.score == "spread" and not causal),
        "causal": int(causal),
        "threads": num_threads(),
    }
    return Problem(
        numbers,
        torch.tensor(group.lengths, device="cpu"),
        torch.tensor(far, device="cpu"),
        group.globals_at.contiguous(),
    )


def far_heights(shape: TreeShape, heights: int, *, causal: bool) -> list[int]:
    """Height of every place that a chunk has for a summary: as many a height as it can leave unopened there."""
    places, kept = [], 0 if causal else 1
    for height in reversed(range(heights)):
        candidates = 2 * kept + int(causal)
        kept = min(candidates, shape.beam if height else shape.near)
        places += [height] * (candidates - kept)
    return places
