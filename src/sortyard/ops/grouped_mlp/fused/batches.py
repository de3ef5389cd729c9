"""Where each expert's copies lie once they are sorted, and which experts are computed together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

# In rounded batches, 16 sizes an octave, and multiples of 8.
_STEP, _SIZES_BITS = 8, 4
# Padding in a batch of several experts: at most one row for so many real ones; `_STEP` rows an expert are always fine.
_REAL_PER_PADDING = 3
# Larger batches would only need more memory.
_MAX_ROWS = 4096


class Batch(NamedTuple):
    """Consecutive experts that are computed by one batched product.

    Attributes:
        experts: which ones.
        rows: their copies, `size` rows each, one expert after the other.
        size: rows of one expert, the last ones padding; 0 where none of them has work.
    """

    experts: slice
    rows: slice
    size: int

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return int(self.experts.stop - self.experts.start)

    @property
    def num_rows(self) -> int:
        """How many rows they have together."""
        return int(self.rows.stop - self.rows.start)


class Batches(NamedTuple):
    """The sorted copies of N * k slots.

    Attributes:
        batches: all experts, in order.
        places: row of each slot; `num_rows` where the slot belongs to nobody.
        tokens: token of each row; N where the row is padding.
        num_rows: rows of all batches.
    """

    batches: list[Batch]
    places: Int[Tensor, "N k"]
    tokens: Int[Tensor, " rows"]
    num_rows: int

    @property
    def longest(self) -> int:
        """Rows of the largest batch."""
        return max(batch.num_rows for batch in self.batches)


def sort_batches(experts: Int[Tensor, "N k"], *, num_experts: int, rounded: bool, alone_from: int) -> Batches:
    """Sort slots by expert, in token order within one; the counts come to the host here.

    Args:
        experts: expert of each slot; `num_experts` or more where nobody's.
        num_experts: number of experts E.
        rounded: whether the rows of an expert are rounded up to few different numbers.
        alone_from: rows from which an expert keeps all threads busy and is a batch of its own.

    Returns:
        The batches.
    """
    num_tokens, per_token = experts.shape
    ordered, slots = experts.flatten().sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(num_experts, device=experts.device), right=True).tolist()
    starts = [0, *ends[:-1]]
    counts = [end - start for start, end in zip(starts, ends, strict=True)]
    batches = list(_plan(counts, rounded=rounded, alone_from=alone_from))
    num_rows = batches[-1].rows.stop
    firsts = [batch.rows.start + index * batch.size for batch in batches for index in range(batch.num_experts)]
    # Slots of nobody come last in the order; they all get the row behind the last one.
    shifts = torch.tensor([first - start for first, start in zip(firsts, starts, strict=True)], device=slots.device)
    real = ends[-1]
    places = torch.full_like(slots, num_rows)
    places[slots[:real]] = torch.arange(real, device=slots.device) + shifts[ordered[:real]]
    tokens = slots.new_full((num_rows + 1,), num_tokens)
    tokens[places] = torch.arange(len(slots), device=slots.device) // max(per_token, 1)
    return Batches(batches, places.view_as(experts), tokens[:num_rows], num_rows)


def max_rows(num_slots: int | torch.SymInt, *, num_experts: int) -> int | torch.SymInt:
    """Bound the rows of all batches from above, whatever the routing is.

    Args:
        num_slots: slots N * k; a symbol while a compiler traces shapes it does not know.
        num_experts: number of experts E.

    Returns:
        The bound.
    """
    return num_slots + num_slots // _REAL_PER_PADDING + _STEP * num_experts


def _plan(counts: Sequence[int], *, rounded: bool, alone_from: int) -> Iterator[Batch]:
    """Halve the experts until little of a batch is padding."""
    row = 0
    waiting = [(0, len(counts))]
    while waiting:
        first, end = waiting.pop()
        size = max(counts[first:end])
        size = _round_up(size) if rounded else size
        rows, real = size * (end - first), sum(counts[first:end])
        is_little = size <= _STEP or rows <= real + real // _REAL_PER_PADDING
        if end - first == 1 or (is_little and size < alone_from and rows <= _MAX_ROWS):
            yield Batch(slice(first, end), slice(row, row + rows), size)
            row += rows
        else:
            middle = (first + end) // 2
            waiting += [(middle, end), (first, middle)]


def _round_up(count: int) -> int:
    step = max(_STEP, 1 << max(count.bit_length() - 1 - _SIZES_BITS, 0))
    return -(-count // step) * step
