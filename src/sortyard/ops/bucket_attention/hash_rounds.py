"""One hash round of a group of sequences: who is sorted where, and which keys each query's chunk meets."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.shapes import RoundsShape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_hash import lsh_codes

# Pads sort behind every code.
_LAST = 1 << 40


@dataclass(frozen=True)
class HashRound:
    """Windows of one round over its sorted keys.

    Args:
        query_order: Position of each sorted query; the identity if every query has its own window.
        key_order: Position of each sorted key.
        start: First key rank of each chunk's window.
        end: Key rank behind each chunk's window.
        chunk: Sorted queries of a chunk.
        width: Most keys of a window.
    """

    query_order: Int[Tensor, "S H n"]
    key_order: Int[Tensor, "S H n"]
    start: Int[Tensor, "S H C"]
    end: Int[Tensor, "S H C"]
    chunk: int
    width: int

    def window_of_queries(self) -> tuple[Int[Tensor, "S H n"], Int[Tensor, "S H n"]]:
        """Start and end of each query's window, queries in their own order."""
        chunk_of = inverse(self.query_order) // self.chunk
        return self.start.gather(-1, chunk_of), self.end.gather(-1, chunk_of)


def inverse(order: Int[Tensor, "S H n"]) -> Int[Tensor, "S H n"]:
    """The permutation that undoes another."""
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


@torch.no_grad()
def hash_round(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    round_index: int,
) -> HashRound:
    """Hash, sort and place the windows of one round.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.
        round_index: Which round.

    Returns:
        The round's windows.
    """
    shape = group.shape
    assert isinstance(shape, RoundsShape)
    sized = replace(spec, bucket_size=shape.bucket_size, num_buckets=None) if spec.hash == "kmeans" else spec
    codes = [
        lsh_codes(x, sized, round_index=round_index, keys=k, real=group.real, causal=causal).masked_fill(
            ~group.real[:, None], _LAST
        )
        for x in (q, k)
    ]
    if causal:
        drop = 16 - shape.code_bits if spec.hash == "gray" else 0
        return _past_windows(codes[0] >> drop, codes[1] >> drop, size=shape.bucket_size)
    return _aligned_windows(codes[0], codes[1], lengths=group.real.sum(-1), size=shape.bucket_size)


def _aligned_windows(
    query_codes: Int[Tensor, "S H n"], key_codes: Int[Tensor, "S H n"], *, lengths: Int[Tensor, " S"], size: int
) -> HashRound:
    """Windows of 2 * size sorted keys around the place where the chunk's middle query would sort."""
    n, device = query_codes.shape[-1], query_codes.device
    sorted_queries, query_order = query_codes.sort(dim=-1, stable=True)
    sorted_keys, key_order = key_codes.sort(dim=-1, stable=True)
    first = torch.arange(0, n, size, device=device)
    held = (lengths[:, None] - first).clamp(1, size)  # [S, C]
    middle = (first + held // 2).clamp_max(n - 1)[:, None].expand(*query_codes.shape[:2], -1)
    code = sorted_queries.gather(-1, middle)
    low, high = (torch.searchsorted(sorted_queries, code, right=right) for right in (False, True))
    left, right = (torch.searchsorted(sorted_keys, code.contiguous(), right=right) for right in (False, True))
    centre = left + (middle - low) * (right - left) // (high - low)
    limit = lengths[:, None, None]
    start = torch.minimum((centre - size).clamp_min(0), (limit - 2 * size).clamp_min(0))
    end = torch.minimum(start + 2 * size, limit)
    return HashRound(query_order, key_order, start, end, chunk=size, width=min(2 * size, n))


def _past_windows(query_codes: Int[Tensor, "S H n"], key_codes: Int[Tensor, "S H n"], *, size: int) -> HashRound:
    """For every query its own window: the last `size` keys of its code at or before it."""
    n = query_codes.shape[-1]
    position = torch.arange(n, device=query_codes.device)
    sorted_places, key_order = (key_codes * n + position).sort(dim=-1)
    end = torch.searchsorted(sorted_places, query_codes * n + position, right=True)
    start = torch.maximum(torch.searchsorted(sorted_places, query_codes * n), end - size)
    identity = position.expand_as(query_codes)
    return HashRound(identity, key_order, start, end, chunk=1, width=min(size, n))
