"""The parts of every query's keys: which chunk meets which keys, and which pairs count there."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.hash_rounds import HashRound, hash_round, inverse
from sortyard.ops.bucket_attention.spec import BucketSpec

# Smaller chunks leave the local window's product too little to do.
_LOCAL_CHUNK = 16


@dataclass(frozen=True)
class Part:
    """Pairs of chunks of queries with the keys that each chunk gathers.

    Args:
        queries: Position of each chunk's queries; n and above behind the last one.
        keys: Position of each chunk's keys.
        keep: Which pairs count.
    """

    queries: Int[Tensor, "S H C c"]
    keys: Int[Tensor, "S H C X"]
    keep: Bool[Tensor, "S H C c X"]


@torch.no_grad()
def make_parts(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> list[Part]:
    """The parts of a query's keys: each round, the local window, the global tokens; disjoint unless `multiset`.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        One part a round, then the local window, then the global tokens.
    """
    S, H, n, _ = q.shape
    is_global = torch.zeros(S, n + 1, dtype=torch.bool, device=q.device)
    is_global.scatter_(-1, group.globals_at % (n + 1), True)
    is_global = is_global[:, :n]
    rounds = [
        hash_round(q, k, spec, group=group, causal=causal, round_index=index) for index in range(spec.num_hash_rounds)
    ]
    parts = []
    for index, current in enumerate(rounds):
        part = _round_part(current, n)
        parts.append(part if spec.multiset else _without_earlier(part, rounds[:index], is_global, w=spec.local_window))
    return [
        *parts,
        _local_part(spec, group=group, causal=causal, heads=H),
        _global_part(spec, group=group, causal=causal, heads=H),
    ]


def _round_part(current: HashRound, n: int) -> Part:
    S, H, C = current.start.shape
    device = current.start.device
    padded = F.pad(current.query_order, (0, C * current.chunk - n), value=n)
    if padded.shape[-1] > n:  # places behind the last query, each a number of its own, so that the order inverts
        padded[..., n:] = torch.arange(n, padded.shape[-1], device=device)
    rank = current.start[..., None] + torch.arange(current.width, device=device)
    keys = current.key_order.gather(-1, rank.clamp_max(n - 1).flatten(2)).view_as(rank)
    keep = (rank < current.end[..., None])[..., None, :].expand(S, H, C, current.chunk, current.width)
    return Part(padded.view(S, H, C, current.chunk), keys, keep)


def _without_earlier(part: Part, earlier: list[HashRound], is_global: Bool[Tensor, "S n"], *, w: int) -> Part:
    """A round's pairs that no earlier round, the local window or a global token holds."""
    S, H, C, X = part.keys.shape
    n = is_global.shape[-1]
    queries = part.queries.clamp_max(n - 1)
    marked = is_global[:, None].expand(S, H, n).gather(-1, part.keys.flatten(2)).view_as(part.keys)
    keep = part.keep & ~marked[..., None, :] & ((queries[..., :, None] - part.keys[..., None, :]).abs() > w)
    for other in earlier:
        start, end = (x.gather(-1, queries.flatten(2)).view_as(queries)[..., None] for x in other.window_of_queries())
        rank = inverse(other.key_order).gather(-1, part.keys.flatten(2)).view(S, H, C, 1, X)
        keep = keep & ~((rank >= start) & (rank < end))
    return replace(part, keep=keep)


def _local_part(spec: BucketSpec, *, group: Group, causal: bool, heads: int) -> Part:
    """Keys at most local_window away, for chunks of consecutive queries."""
    n, w, device = group.length, spec.local_window, group.real.device
    chunk = max(_LOCAL_CHUNK, w)
    starts = torch.arange(0, n, chunk, device=device)[:, None]
    queries = starts + torch.arange(chunk, device=device)  # [C, c]
    keys = starts + torch.arange(-w, chunk + (0 if causal else w), device=device)  # [C, X]
    away = queries[:, :, None] - keys[:, None]
    keep = (away <= w) & (away >= (0 if causal else -w)) & (keys >= 0)[:, None]
    real = keys < group.real.sum(-1)[:, None, None]  # [S, C, X]
    shape = (len(group.lengths), heads, len(starts))
    return Part(
        queries.expand(*shape, -1),
        keys.clamp(0, n - 1).expand(*shape, -1),
        (keep & real[:, :, None])[:, None].expand(*shape, -1, -1),
    )


def _global_part(spec: BucketSpec, *, group: Group, causal: bool, heads: int) -> Part:
    """Global tokens, one chunk of all queries."""
    n, at = group.length, group.globals_at
    queries = torch.arange(n, device=at.device)
    away = queries[:, None] - at[:, None]  # [S, n, g]
    keep = (at >= 0)[:, None].expand_as(away)
    if causal:
        keep = keep & (away >= 0)
    if not spec.multiset:
        keep = keep & (away.abs() > spec.local_window)
    shape = (len(group.lengths), heads, 1)
    return Part(
        queries.expand(*shape, -1),
        at.clamp_min(0)[:, None, None].expand(*shape, -1),
        keep[:, None, None].expand(*shape, -1, -1),
    )
