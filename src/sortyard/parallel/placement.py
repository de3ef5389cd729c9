"""Which part of each of the whole model's tensors a process holds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from torch import Tensor

Span = tuple[int, int]


class Box(NamedTuple):
    """A box of a whole tensor that lies in a held one.

    Attributes:
        offset: where it begins in the whole tensor.
        inside: where it lies in the held one.
    """

    offset: tuple[int, ...]
    inside: tuple[slice, ...]


@dataclass(frozen=True)
class Placement:
    """The part of a tensor that is left after cutting along some dims.

    Args:
        whole: shape of the whole tensor.
        spans: for each dim the spans of the whole that are held, one after another.
        by_tensor_parallelism: whether the processes of a tensor-parallel group hold different parts.
        by_expert_parallelism: whether those of an expert-parallel group do.
        is_repeated: whether another process of the pipeline holds the same tensor and answers for it.
    """

    whole: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    by_tensor_parallelism: bool = False
    by_expert_parallelism: bool = False
    is_repeated: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "Placement":
        """Nothing is cut yet."""
        return cls(tuple(tensor.shape), tuple(((0, length),) for length in tensor.shape))

    def cut(self, dim: int, spans: tuple[Span, ...]) -> "Placement":
        """Keep spans of a dim that was whole."""
        at = dim % len(self.whole)
        return replace(self, spans=(*self.spans[:at], spans, *self.spans[at + 1 :]))

    def boxes(self, held: Tensor, *, first_row: int = 0) -> Iterator[Box]:
        """The boxes of a held tensor.

        Args:
            held: what is left of the tensor; of its first dim only the rows from `first_row` on, as many as there are.
            first_row: how many rows of the part other processes hold before this one's.
        """
        dims = []
        for dim, spans in enumerate(self.spans):
            first = first_row if dim == 0 else 0
            dims.append(list(_clipped(spans, first, first + held.shape[dim])))
        for parts in product(*dims):
            yield Box(tuple(start for start, _ in parts), tuple(index for _, index in parts))


def even_span(length: int, parts: int, index: int) -> Span:
    """One of `parts` spans of a length; the last ones are shorter, or empty, where it does not divide."""
    step = -(-length // parts)
    return min(length, index * step), min(length, (index + 1) * step)


def _clipped(spans: tuple[Span, ...], first: int, end: int) -> Iterator[tuple[int, slice]]:
    """Starts in the whole, and slices in the held rows first to end of the spans laid end to end."""
    at = 0
    for start, stop in spans:
        low, high = max(at, first), min(at + stop - start, end)
        if low < high:
            yield start + low - at, slice(low - first, high - first)
        at += stop - start
