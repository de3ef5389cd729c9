"""Which positions of a batch form one sequence: padding and packing, settled once a batch."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The sequences of a [B, T] batch; pads belong to none. Built once a batch and passed to every layer.

    Args:
        batch_size: Rows B.
        length: Positions T of a row.
        lengths: Real tokens of each sequence, as host integers; sequences with none are left out.
        counts: The same on the device, for graphs that are compiled once for batches of all lengths.
        token_index: Flattened index b * T + t of the real tokens, sequence after sequence, in order.
        ids: Number of the sequence a position belongs to; -1 at pads.
        positions: Rank of a position among its sequence's real tokens; 0 at pads.
        is_trivial: Every row is one sequence without pads.
        is_traced: Made while a graph is traced, where nothing can come to the host: `lengths`, `counts` and
            `token_index` are empty, and `is_trivial` is False. Operators that need them rebuild the segments with
            `restore_segments`.
        kept: What an operator made of the sequences and needs again in the next layer.
    """

    batch_size: int
    length: int
    lengths: tuple[int, ...]
    counts: Int[Tensor, " S"]
    token_index: Int[Tensor, " real"]
    ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    is_trivial: bool
    is_traced: bool = False
    kept: dict[Hashable, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """Real tokens of the batch; in a traced graph all positions, as nobody knows."""
        return self.batch_size * self.length if self.is_traced else len(self.token_index)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Segments":
        """The same sequences on another device; made once, for models whose layers are spread over several.

        Args:
            device: Where the index tensors shall live.
            non_blocking: Whether to copy without waiting, where that can be done.

        Returns:
            These segments if they live there, or a copy.
        """
        device = torch.device(device)
        if device == self.ids.device:
            return self
        key = ("on", device)
        if key not in self.kept:
            names = ("counts", "token_index", "ids", "positions")
            moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
            self.kept[key] = replace(self, **moved)
        found: Segments = self.kept[key]
        return found


def make_segments(
    batch_size: int,
    length: int,
    *,
    key_padding_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " boundaries"] | None = None,
    device: torch.device | str,
) -> Segments:
    """Find the sequences of a batch; the lengths come to the host here, but not while a graph is traced.

    Args:
        batch_size: Rows B, at least 0.
        length: Positions T of a row, at least 0.
        key_padding_mask: True at real tokens; all are real when left out.
        cu_seqlens: Boundaries of packed sequences over the flattened B * T positions, from 0 upwards; positions
            after the last boundary are pads. One row is one sequence when left out.
        device: Where the index tensors live.

    Returns:
        The sequences, pads removed.

    Raises:
        ValueError: a mask of another shape, or boundaries that do not start at 0, fall, leave the batch or cross a row.
    """
    size = batch_size * length
    index = torch.arange(size, device=device)
    if key_padding_mask is not None and tuple(key_padding_mask.shape) != (batch_size, length):
        raise ValueError(
            f"key_padding_mask has shape {tuple(key_padding_mask.shape)}; it must be [B, T] = {(batch_size, length)}"
        )
    if cu_seqlens is None:
        num_sequences, ids = batch_size, index // max(length, 1)
        real = torch.ones(size, dtype=torch.bool, device=device)
    else:
        if not torch.compiler.is_compiling():
            _check_boundaries(cu_seqlens.tolist(), size=size, length=length)
        boundaries = cu_seqlens.to(device=device, dtype=torch.long)
        num_sequences = len(boundaries) - 1
        ids = torch.searchsorted(boundaries, index, right=True) - 1
        real = index < boundaries[-1]
        ids = torch.where(real, ids, 0)
    if key_padding_mask is not None:
        real = real & key_padding_mask.to(device).flatten()
    counts = torch.zeros(num_sequences, dtype=torch.long, device=device).index_add_(0, ids, real.long())
    numbers, starts = (counts > 0).cumsum(0) - 1, counts.cumsum(0) - counts
    positions = real.long().cumsum(0) - 1 - starts[ids]
    ids = torch.where(real, numbers[ids], -1).view(batch_size, length)
    positions = torch.where(real, positions, 0).view(batch_size, length)
    if torch.compiler.is_compiling():
        nothing = index[:0]
        return Segments(batch_size, length, (), nothing, nothing, ids, positions, is_trivial=False, is_traced=True)
    return restore_segments(ids, positions)


def restore_segments(ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Segments:
    """Build the segments from their tensors; operators that a graph calls do it again when they run.

    Args:
        ids: Number of the sequence a position belongs to; -1 at pads.
        positions: Rank of a position among its sequence's real tokens; 0 at pads.

    Returns:
        The segments.
    """
    batch_size, length = ids.shape
    real = ids.flatten() >= 0
    token_index = real.nonzero()[:, 0]
    counts = torch.bincount(ids.flatten()[token_index])
    lengths = tuple(counts.tolist())
    is_trivial = lengths == (length,) * batch_size
    return Segments(batch_size, length, lengths, counts, token_index, ids, positions, is_trivial)


def find_segments(
    batch_size: int,
    length: int,
    *,
    segments: Segments | None,
    key_padding_mask: Bool[Tensor, "B T"] | None,
    cu_seqlens: Int[Tensor, " boundaries"] | None,
    device: torch.device | str,
) -> Segments:
    """The given segments if they fit the batch, or else those of the mask and the boundaries.

    Args:
        batch_size: Rows B of the batch.
        length: Positions T of a row.
        segments: Sequences found before, or None.
        key_padding_mask: True at real tokens; only without segments.
        cu_seqlens: Boundaries of packed sequences; only without segments.
        device: Where new index tensors live.

    Returns:
        The batch's sequences.

    Raises:
        ValueError: segments beside a mask or boundaries, or segments of another batch.
    """
    if segments is None:
        return make_segments(
            batch_size, length, key_padding_mask=key_padding_mask, cu_seqlens=cu_seqlens, device=device
        )
    if key_padding_mask is not None or cu_seqlens is not None:
        raise ValueError("segments is given beside key_padding_mask or cu_seqlens; give one or the other")
    if (segments.batch_size, segments.length) != (batch_size, length):
        raise ValueError(
            f"segments is for [B, T] = {(segments.batch_size, segments.length)}, but q has {(batch_size, length)}; "
            "build it from the same batch"
        )
    return segments


def _check_boundaries(boundaries: list[int], *, size: int, length: int) -> None:
    if len(boundaries) < 2 or boundaries[0] != 0:
        raise ValueError(f"cu_seqlens is {boundaries[:4]}; it must start at 0 and hold at least two boundaries")
    for start, end in pairwise(boundaries):
        if not start <= end <= size:
            raise ValueError(
                f"cu_seqlens goes from {start} to {end}; boundaries must rise and end within B * T = {size}"
            )
        if end > start and start // length != (end - 1) // length:
            raise ValueError(
                f"cu_seqlens has a sequence from {start} to {end} that crosses a row of {length} positions; "
                "end it at the row's border, or mark the row's tail in key_padding_mask"
            )
