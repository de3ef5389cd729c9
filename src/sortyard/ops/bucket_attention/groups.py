"""Sequences of one shape side by side: out of the batch, and back into it."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.shapes import RoundsShape, TreeShape, resolve_shape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.segments import Segments


@dataclass(frozen=True)
class Group:
    """Sequences that share a shape, padded at their ends to the longest one's length n.

    Args:
        shape: How their buckets are made; None for dense attention.
        sequences: Their numbers in the segments.
        lengths: Their real tokens.
        tokens: Flattened b * T + t of the real tokens, sequence after sequence; None if the group is the whole batch
            as it lies.
        places: Where they go: flattened s * n + place.
        real: Which places hold a token.
        globals_at: Positions of the global tokens, -1 at places without one.
    """

    shape: TreeShape | RoundsShape | None
    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: Int[Tensor, " tokens"] | None
    places: Int[Tensor, " tokens"]
    real: Bool[Tensor, "S n"]
    globals_at: Int[Tensor, "S g"]

    @property
    def length(self) -> int:
        """The longest sequence's tokens n."""
        return max(self.lengths)

    @property
    def is_full(self) -> bool:
        """Whether no sequence is padded."""
        return min(self.lengths) == max(self.lengths)

    @cached_property
    def segments(self) -> Segments:
        """The group as a batch of its own, a sequence a row."""
        S, n = self.real.shape
        row, place = (torch.arange(count, device=self.real.device) for count in (S, n))
        ids, positions = torch.where(self.real, row[:, None], -1), torch.where(self.real, place, 0)
        counts = self.real.sum(-1)
        return Segments(S, n, self.lengths, counts, self.places, ids, positions, is_trivial=self.is_full)

    def spread(self, x: Float[Tensor, "tokens H K"]) -> Float[Tensor, "S H n K"]:
        """Put the group's tokens at their places; pads are zeros."""
        S, n = self.real.shape
        if not self.is_full:
            x = x.new_zeros(S * n, *x.shape[1:]).index_copy(0, self.places, x)
        return x.view(S, n, *x.shape[1:]).transpose(1, 2)


def make_groups(
    segments: Segments,
    spec: BucketSpec | None,
    *,
    causal: bool,
    global_tokens: Bool[Tensor, "B T"] | None,
) -> Sequence[Group]:
    """Group the sequences of a batch by the shape of their buckets; layers of the same settings share the groups.

    Args:
        segments: The batch's sequences.
        spec: The attention's settings; None for dense attention, whatever the lengths.
        causal: Whether a query sees only keys at or before it.
        global_tokens: Tokens that every query reads, besides the first ones; counting them costs a host sync.

    Returns:
        The groups, in order of their first sequence.

    Raises:
        ValueError: global tokens of another shape.
    """
    expected = (segments.batch_size, segments.length)
    if global_tokens is not None and tuple(global_tokens.shape) != expected:
        raise ValueError(f"global_tokens has shape {tuple(global_tokens.shape)}; it must be [B, T] = {expected}")
    key = (spec, causal, torch.is_inference_mode_enabled())
    if global_tokens is None and key in segments.kept:
        return segments.kept[key]  # type: ignore[no-any-return]
    on_cpu = segments.token_index.device.type == "cpu"
    members = _members(segments.lengths, spec=spec, causal=causal, on_cpu=on_cpu)
    groups = [_make_group(segments, spec, numbers, causal, global_tokens) for numbers in members]
    if global_tokens is None:
        segments.kept[key] = groups
    return groups


@lru_cache(maxsize=16)
def dense_pairs(lengths: tuple[int, ...], *, on_cpu: bool) -> int:
    """Query-key pairs of dense attention in groups, those of the pads that groups add included; every layer asks."""
    members = _members(lengths, spec=None, causal=False, on_cpu=on_cpu)
    return sum(len(numbers) * max(lengths[number] for number in numbers) ** 2 for numbers in members)


def _members(
    lengths: Sequence[int], *, spec: BucketSpec | None, causal: bool, on_cpu: bool
) -> Collection[Sequence[int]]:
    """Numbers of the sequences of each group, in order of the first ones."""
    members: dict[Hashable, list[int]] = {}
    for number, length in enumerate(lengths):
        members.setdefault(_group_key(length, spec=spec, causal=causal, on_cpu=on_cpu), []).append(number)
    return members.values()


def _group_key(length: int, *, spec: BucketSpec | None, causal: bool, on_cpu: bool) -> Hashable:
    """What sequences of one group have in common.

    A CPU's time is in arithmetic, of which padding is a part; a GPU's is in launches, so there are fewer groups there:
    trees as deep as each other, whatever their leaves hold, and sequences without buckets within a factor of four.
    """
    shape = _shape_of(spec, length, causal)
    if spec is None or shape is None:
        return None, length.bit_length() if on_cpu else length.bit_length() // 2
    if on_cpu or causal or not isinstance(shape, TreeShape):
        return shape, 0
    # A tree's depth follows its length, within a factor of two, unless the number of buckets is given.
    return replace(shape, bucket_size=0), 0 if spec.num_buckets is None else length.bit_length()


def _shape_of(spec: BucketSpec | None, length: int, causal: bool) -> TreeShape | RoundsShape | None:
    return None if spec is None else resolve_shape(spec, length, causal)


def _make_group(
    segments: Segments,
    spec: BucketSpec | None,
    numbers: Sequence[int],
    causal: bool,
    global_tokens: Bool[Tensor, "B T"] | None,
) -> Group:
    # Whatever follows from the lengths is computed from what the host knows of them: asking a GPU stops it.
    # Where groups are kept for the next layer, nothing may be an operator whose results selective checkpointing keeps:
    # it counts them, and a layer that finds the groups made has fewer.
    lengths = tuple(segments.lengths[number] for number in numbers)
    longest, total, device = max(lengths), sum(lengths), segments.token_index.device
    starts = [0, *accumulate(segments.lengths)]
    facts = _to_device(torch.tensor([[starts[number] for number in numbers], lengths], device="cpu"), device)
    place = torch.arange(longest, device=device)
    real = place < facts[1][:, None]
    of_sequence = torch.repeat_interleave(torch.arange(len(numbers), device=device), facts[1], output_size=total)
    within = torch.arange(total, device=device) - (facts[1].cumsum(0) - facts[1])[of_sequence]
    tokens = None if segments.is_trivial else segments.token_index[facts[0][of_sequence] + within]
    places = of_sequence * longest + within
    num_first = 0 if spec is None else spec.num_global_tokens
    first = place[:num_first]
    globals_at = torch.where(first < facts[1][:, None], first, -1)
    if global_tokens is not None:
        marked = global_tokens.flatten() if tokens is None else global_tokens.flatten()[tokens]
        chosen = torch.zeros_like(real).flatten().index_copy(0, places, marked).view_as(real)
        globals_at = _marked_places(chosen | ((place < num_first) & real))
    return Group(_shape_of(spec, longest, causal), tuple(numbers), lengths, tokens, places, real, globals_at)


def _marked_places(chosen: Bool[Tensor, "S n"]) -> Int[Tensor, "S g"]:
    """The chosen places of each row, then -1; how many there are at most is asked of the device."""
    at = (~chosen).to(torch.uint8).argsort(dim=-1, stable=True)[:, : int(chosen.sum(-1).max())]
    return torch.where(chosen.gather(-1, at), at, -1)


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for what the device has to do."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def scatter_groups(
    outputs: list[tuple[Group, Float[Tensor, "_S H _n K"]]], *, like: Float[Tensor, "B H T K"]
) -> Float[Tensor, "B H T K"]:
    """Put the groups' outputs back to their places in the batch; pads become zeros."""
    if len(outputs) == 1 and outputs[0][0].tokens is None:
        return outputs[0][1]
    B, H, T, K = like.shape
    values = []
    for group, out in outputs:
        flat = out.transpose(1, 2).flatten(0, 1)
        values.append(flat if group.is_full else take_rows(flat, group.places))
    flat = like.new_zeros(B * T, H, K, dtype=values[0].dtype if values else None)  # autocast's, where it is on
    if values:
        flat = flat.index_copy(0, _tokens_of([group for group, _ in outputs]), torch.cat(values))
    return flat.view(B, T, H, K).transpose(1, 2)


def gather_groups(x: Float[Tensor, "B H T K"], groups: Sequence[Group]) -> list[Float[Tensor, "_S H _n K"]]:
    """Take the groups' tokens out of a batch.

    Args:
        x: Queries, keys or values of the batch.
        groups: All of its groups.

    Returns:
        Those of each group; zeros at pads.
    """
    if len(groups) == 1 and groups[0].tokens is None:
        return [x]
    if not groups:
        return []
    taken = take_rows(x.transpose(1, 2).flatten(0, 1), _tokens_of(groups))
    parts = torch.split(taken, [sum(group.lengths) for group in groups])
    return [group.spread(part) for group, part in zip(groups, parts, strict=True)]


def _tokens_of(groups: Sequence[Group]) -> Int[Tensor, " tokens"]:
    return torch.cat([group.places if group.tokens is None else group.tokens for group in groups])


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(table)
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, index, grad), None


def take_rows(table: Float[Tensor, "rows H K"], index: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens H K"]:
    """Rows of a table, none of which is taken twice, so that their gradients are copied where others are added.

    Args:
        table: The rows.
        index: Different ones of their numbers.

    Returns:
        The rows, differentiable with respect to the table.
    """
    return _TakeRows.apply(table, index)  # type: ignore[no-untyped-call,no-any-return]
