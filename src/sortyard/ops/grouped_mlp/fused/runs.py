"""Where each expert's rows lie once the copies are sorted."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

# Rows are rounded up to 16 sizes an octave, and to multiples of 8.
_STEP, _SIZES_BITS = 8, 4


class Run(NamedTuple):
    """One expert's copies: `slots` of them, in rows `first` to `first + size` (the last ones padding)."""

    expert: int
    slots: Int[Tensor, " r"]
    tokens: Int[Tensor, " r"]
    first: int
    size: int


class Runs(NamedTuple):
    """The sorted copies of N * k slots.

    Attributes:
        runs: the experts that have work.
        idle: the experts that have none.
        places: row of each slot; `num_rows` where the slot belongs to nobody.
        num_rows: rows of all runs.
    """

    runs: list[Run]
    idle: list[int]
    places: Int[Tensor, "N k"]
    num_rows: int


def sort_runs(experts: Int[Tensor, "N k"], *, num_experts: int, rounded: bool) -> Runs:
    """Sort slots by expert, in token order within one; the counts come to the host here.

    Args:
        experts: expert of each slot; `num_experts` or more where nobody's.
        num_experts: number of experts E.
        rounded: whether the rows of a run are rounded up to few different numbers (see `max_rows`).

    Returns:
        The runs.
    """
    ordered, slots = experts.flatten().sort(stable=True)
    every = torch.arange(num_experts, device=experts.device)
    ends = torch.searchsorted(ordered, every, right=True)
    runs: list[Run] = []
    tokens, places = slots // experts.shape[1], torch.empty_like(slots)
    start = row = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            size = _round_up(end - start) if rounded else end - start
            runs.append(Run(expert, slots[start:end], tokens[start:end], row, size))
            start, row = end, row + size
    _fill_places(places, slots, runs, num_rows=row)
    busy = {run.expert for run in runs}
    idle = [expert for expert in range(num_experts) if expert not in busy]
    return Runs(runs, idle, places.view_as(experts), row)


def max_rows(num_slots: int | torch.SymInt, *, num_experts: int, rounded: bool) -> int | torch.SymInt:
    """Bound the rows of all runs from above, whatever the routing is.

    Args:
        num_slots: slots N * k; a symbol while a compiler traces shapes it does not know.
        num_experts: number of experts E.
        rounded: as for `sort_runs`.

    Returns:
        The bound; `num_slots` itself when not rounded.
    """
    return num_slots + num_slots // 2**_SIZES_BITS + _STEP * num_experts if rounded else num_slots


def _round_up(count: int) -> int:
    step = max(_STEP, 1 << max(count.bit_length() - 1 - _SIZES_BITS, 0))
    return -(-count // step) * step


def _fill_places(places: Tensor, slots: Tensor, runs: list[Run], *, num_rows: int) -> None:
    rows = [torch.arange(run.first, run.first + len(run.slots), device=slots.device) for run in runs]
    real = sum(len(part) for part in rows)
    rows.append(torch.full((len(slots) - real,), num_rows, device=slots.device))
    places[slots] = torch.cat(rows)
