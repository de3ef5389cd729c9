"""The parts of every query's keys: which chunk meets which keys, and which pairs count there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.hash_rounds import HashRound, hash_rounds, inverse
from sortyard.ops.bucket_attention.spec import BucketSpec

# What a pair that does not count adds to its logit: finite, so that no infinity meets another, and beyond every logit.
FAR = 1e30
# Chunks of the local window: smaller ones leave their products too little to do, larger ones have too many logits.
_LEAST_LOCAL_CHUNK = 32
_MOST_LOCAL_CHUNK = 128


@dataclass(frozen=True)
class Rule:
    """Pairs of a key and a query that lie within an interval around the query do not count.

    Args:
        key: Each key's place on a line.
        centre: The middle of each query's interval.
        half: Half the length of the interval.
        side: 1 leaves out the pairs inside, -1 those outside, 0 none; one number, or one for each key of a chunk.
    """

    key: Float[Tensor, "S H C X"]
    centre: Float[Tensor, "S H C c"]
    half: Float[Tensor, "S H C c"]
    side: float | Float[Tensor, " X"]


@dataclass(frozen=True)
class Part:
    """Chunks of queries, the keys that each of them meets, and the rules by which a pair counts.

    Args:
        queries: Positions of each chunk's queries; n at empty places.
        keys: Positions of each chunk's keys.
        shut: 0 at keys that may count, -FAR at those that count for no query of the chunk.
        rules: Further pairs that do not count.
    """

    queries: Int[Tensor, "S H C c"]
    keys: Int[Tensor, "S H C X"]
    shut: Float[Tensor, "S H C X"]
    rules: tuple[Rule, ...]

    def bias(self, chunks: slice) -> Float[Tensor, "chunks c X"]:
        """What some of the S * H * C chunks add to their logits: 0 at pairs that count, at most -FAR / 2 at others."""
        total = self.shut.flatten(0, 2)[chunks][:, None]
        for rule in self.rules:
            centre, half = (x.flatten(0, 2)[chunks][..., None] for x in (rule.centre, rule.half))
            excess = (rule.key.flatten(0, 2)[chunks][:, None] - centre).abs_().sub_(half)
            total = excess.mul_(rule.side * FAR).clamp_max_(0.0).add_(total)
        return total if self.rules else total.repeat(1, self.queries.shape[-1], 1)

    @property
    def keep(self) -> Bool[Tensor, "S H C c X"]:
        """Which pairs count, all chunks at once."""
        counts: Tensor = self.bias(slice(None)) > -FAR / 4
        return counts.view(*self.queries.shape, -1)


@dataclass(frozen=True)
class RoundsPlan:
    """All that is needed to list the parts of a group's attention, as often as one likes.

    Args:
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.
        rounds: The hash rounds.
    """

    spec: BucketSpec
    group: Group
    causal: bool
    rounds: list[HashRound]

    def parts(self, dtype: torch.dtype) -> Iterator[Part]:
        """The parts in the order in which a pair is looked for: the window with the global tokens, then each round."""
        S, n = self.group.real.shape
        yield _local_part(self, heads=self.rounds[0].key_order.shape[1], dtype=dtype)
        is_global = torch.zeros(S, n + 1, dtype=torch.bool, device=self.group.real.device)
        is_global = is_global.scatter_(-1, self.group.globals_at % (n + 1), True)[:, :n]
        for index in range(len(self.rounds)):
            yield _round_part(self, index, is_global=is_global, dtype=dtype)


def make_parts(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> Iterator[Part]:
    """The parts of a query's keys; disjoint unless `multiset`.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The local window with the global tokens, then one part a round.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return RoundsPlan(spec, group, causal, hash_rounds(q, k, spec, group=group, causal=causal)).parts(wide)


def _round_part(plan: RoundsPlan, index: int, *, is_global: Bool[Tensor, "S n"], dtype: torch.dtype) -> Part:
    """A round's pairs; unless `multiset`, those that no earlier part holds."""
    current = plan.rounds[index]
    S, H, n = current.key_order.shape
    rank = current.first[..., None] + torch.arange(current.num_keys, device=is_global.device)  # [S, H, C, X]
    keys = current.key_order.gather(-1, rank.clamp(0, n - 1).flatten(2)).view_as(rank)
    some_query = current.queries[..., :1].clamp_max(n - 1)
    at = current.queries.clamp_max(n - 1)
    rules = []
    if current.is_shared:
        closed = rank >= current.end.gather(-1, some_query.flatten(2))[..., None]
    else:
        closed = torch.zeros_like(rank, dtype=torch.bool)
        rules.append(_window_rule(current, rank, at, side=-1.0, dtype=dtype))
    if not plan.spec.multiset:
        closed |= is_global[:, None].expand(S, H, n).gather(-1, keys.flatten(2)).view_as(keys)
        near = torch.full((), plan.spec.local_window + 0.5, dtype=dtype, device=at.device).expand(at.shape)
        rules.append(Rule(keys.to(dtype), at.to(dtype), near, 1.0))
        for earlier in plan.rounds[:index]:
            place = inverse(earlier.key_order).gather(-1, keys.flatten(2)).view_as(keys)
            rules.append(_window_rule(earlier, place, at, side=1.0, dtype=dtype))
    return Part(current.queries, keys, _shut(closed, dtype), tuple(rules))


def _window_rule(
    hashed: HashRound,
    rank: Int[Tensor, "S H C X"],
    queries: Int[Tensor, "S H C c"],
    *,
    side: float,
    dtype: torch.dtype,
) -> Rule:
    """Whether a key's rank lies in a query's window."""
    start, end = (x.gather(-1, queries.flatten(2)).view_as(queries).to(dtype) for x in (hashed.start, hashed.end))
    return Rule(rank.to(dtype), (start + end - 1) / 2, (end - start) / 2, side)


def _local_part(plan: RoundsPlan, *, heads: int, dtype: torch.dtype) -> Part:
    """Keys at most local_window away, and the global tokens further away, for chunks of consecutive queries."""
    spec, group, device = plan.spec, plan.group, plan.group.real.device
    n, g = group.length, group.globals_at.shape[-1]
    w = min(spec.local_window, n)
    c = min(max(_LEAST_LOCAL_CHUNK, w), _MOST_LOCAL_CHUNK)
    S, C = len(group.lengths), -(-n // c)
    starts = torch.arange(C, device=device)[:, None] * c
    queries = (starts + torch.arange(c, device=device)).clamp_max(n).expand(S, heads, C, c)
    window = starts + torch.arange(-w, c + (0 if plan.causal else w), device=device)  # [C, X - g]
    keys = torch.cat([window.expand(S, -1, -1), group.globals_at[:, None].expand(S, C, g)], -1)  # [S, C, X]
    closed = ((keys < 0) | (keys >= group.real.sum(-1)[:, None, None]))[:, None].expand(-1, heads, -1, -1)
    keys = keys[:, None].expand_as(closed)
    place, at = keys.to(dtype), queries.to(dtype)
    side = torch.full(keys.shape[-1:], -1.0, dtype=dtype, device=device)
    side[window.shape[-1] :] = 0.0 if spec.multiset else 1.0
    half = torch.full_like(at, w + 0.5)
    rules = [Rule(place, at, half, side)]
    if plan.causal:  # from n before the query up to itself
        rules.append(Rule(place, at - n, torch.full_like(at, n + 0.5), -1.0))
    return Part(queries, keys.clamp(0, n - 1), _shut(closed, dtype), tuple(rules))


def _shut(closed: Bool[Tensor, "S H C X"], dtype: torch.dtype) -> Float[Tensor, "S H C X"]:
    return torch.zeros_like(closed, dtype=dtype).masked_fill_(closed, -FAR)
