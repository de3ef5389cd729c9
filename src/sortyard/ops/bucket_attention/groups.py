"""Sequences of one shape side by side: out of the batch, and back into it."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

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
        tokens: Flattened b * T + t of each place, 0 at pads; None if the group is the whole batch as it lies.
        real: Which places hold a token.
        globals_at: Positions of the global tokens, -1 at places without one.
    """

    shape: TreeShape | RoundsShape | None
    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: Int[Tensor, "S n"] | None
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

    def gather(self, x: Float[Tensor, "B H T K"]) -> Float[Tensor, "S H n K"]:
        """Take the group's tokens out of a batch."""
        if self.tokens is None:
            return x
        return x.transpose(1, 2).flatten(0, 1)[self.tokens].transpose(1, 2)


def make_groups(
    segments: Segments,
    spec: BucketSpec,
    *,
    causal: bool,
    global_tokens: Bool[Tensor, "B T"] | None,
) -> Iterator[Group]:
    """Group the sequences of a batch by the shape of their buckets.

    Args:
        segments: The batch's sequences.
        spec: The attention's settings.
        causal: Whether a query sees only keys at or before it.
        global_tokens: Tokens that every query reads, besides the first ones; counting them costs a host sync.

    Yields:
        The groups, in order of their first sequence.

    Raises:
        ValueError: global tokens of another shape.
    """
    expected = (segments.batch_size, segments.length)
    if global_tokens is not None and tuple(global_tokens.shape) != expected:
        raise ValueError(f"global_tokens has shape {tuple(global_tokens.shape)}; it must be [B, T] = {expected}")
    on_cpu = segments.token_index.device.type == "cpu"
    members: dict[Hashable, list[int]] = {}
    for number, length in enumerate(segments.lengths):
        key = _group_key(resolve_shape(spec, length, causal), length, spec=spec, causal=causal, on_cpu=on_cpu)
        members.setdefault(key, []).append(number)
    for numbers in members.values():
        longest = max(segments.lengths[number] for number in numbers)
        yield _make_group(segments, spec, resolve_shape(spec, longest, causal), numbers, global_tokens)


def _group_key(
    shape: TreeShape | RoundsShape | None, length: int, *, spec: BucketSpec, causal: bool, on_cpu: bool
) -> Hashable:
    """What sequences of one group have in common.

    A CPU's time is in arithmetic, of which padding is a part; a GPU's is in launches, so there are fewer groups there:
    trees as deep as each other, whatever their leaves hold, and sequences without buckets within a factor of four.
    """
    if shape is None:
        return None, length.bit_length() if on_cpu else length.bit_length() // 2
    if on_cpu or causal or not isinstance(shape, TreeShape):
        return shape, 0
    # A tree's depth follows its length, within a factor of two, unless the number of buckets is given.
    return replace(shape, bucket_size=0), 0 if spec.num_buckets is None else length.bit_length()


def _make_group(
    segments: Segments,
    spec: BucketSpec,
    shape: TreeShape | RoundsShape | None,
    numbers: list[int],
    global_tokens: Bool[Tensor, "B T"] | None,
) -> Group:
    lengths = tuple(segments.lengths[number] for number in numbers)
    device = segments.token_index.device
    place = torch.arange(max(lengths), device=device)
    real = place < torch.tensor(lengths, device=device)[:, None]
    tokens = None
    if not segments.is_trivial:
        starts = [0]
        for length in segments.lengths:
            starts.append(starts[-1] + length)
        first = torch.tensor([starts[number] for number in numbers], device=device)
        tokens = segments.token_index[torch.where(real, first[:, None] + place, 0)]
    chosen = (place < spec.num_global_tokens) & real
    count = min(spec.num_global_tokens, max(lengths))
    if global_tokens is not None:
        marked = global_tokens if tokens is None else global_tokens.flatten()[tokens]
        chosen = chosen | (marked & real)
        count = int(chosen.sum(-1).max())
    at = (~chosen).to(torch.uint8).argsort(dim=-1, stable=True)[:, :count]
    return Group(shape, tuple(numbers), lengths, tokens, real, torch.where(chosen.gather(-1, at), at, -1))


def scatter_groups(
    outputs: list[tuple[Group, Float[Tensor, "_S H _n K"]]], *, like: Float[Tensor, "B H T K"]
) -> Float[Tensor, "B H T K"]:
    """Put the groups' outputs back to their places in the batch; pads become zeros."""
    if len(outputs) == 1 and outputs[0][0].tokens is None:
        return outputs[0][1]
    B, H, T, K = like.shape
    tokens = [group.tokens[group.real] for group, _ in outputs if group.tokens is not None]
    values = [out.transpose(1, 2)[group.real] for group, out in outputs]
    flat = like.new_zeros(B * T, H, K)
    if values:
        flat = flat.index_copy(0, torch.cat(tokens), torch.cat(values))
    return flat.view(B, T, H, K).transpose(1, 2)
