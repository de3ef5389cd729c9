"""The hash rounds of a group of sequences: which chunk of queries meets which stretch of the sorted keys."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.shapes import RoundsShape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_hash import round_codes

# Pads sort behind every code.
_LAST = 1 << 40
# More queries that share their keys are cut into several chunks, which bounds the logits that exist at a time.
_MOST_QUERIES = 128


@dataclass(frozen=True)
class HashRound:
    """One round: its sorted keys, its chunks of queries, and the window of every query over the sorted keys.

    Args:
        key_order: Position of each sorted key.
        queries: Positions of each chunk's queries; n at empty places.
        first: Key rank of each chunk's first key; may be negative.
        num_keys: Keys that a chunk meets.
        start: First key rank of each query's window, queries in the order of positions.
        end: Key rank behind each query's window.
        is_shared: Whether all queries of a chunk have one window.
    """

    key_order: Int[Tensor, "S H n"]
    queries: Int[Tensor, "S H C c"]
    first: Int[Tensor, "S H C"]
    num_keys: int
    start: Int[Tensor, "S H n"]
    end: Int[Tensor, "S H n"]
    is_shared: bool


def inverse(order: Int[Tensor, "S H n"]) -> Int[Tensor, "S H n"]:
    """The permutation that undoes another."""
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


@torch.no_grad()
def hash_rounds(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> list[HashRound]:
    """Hash, sort and place the windows of all rounds.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The rounds.
    """
    shape = group.shape
    assert isinstance(shape, RoundsShape)
    sized = replace(spec, bucket_size=shape.bucket_size, num_buckets=None) if spec.hash == "kmeans" else spec
    rounds, pads = range(spec.num_hash_rounds), ~group.real[:, None]
    query_codes, key_codes = (
        round_codes(x, sized, rounds=rounds, keys=k, real=group.real, causal=causal).masked_fill(pads, _LAST)
        for x in (q, k)
    )
    if not causal:
        lengths = group.real.sum(-1)
        return [
            _aligned_round(query, key, lengths=lengths, size=shape.bucket_size)
            for query, key in zip(query_codes, key_codes, strict=True)
        ]
    drop = 16 - shape.code_bits if spec.hash == "gray" else 0
    return [
        _past_round(query >> drop, key >> drop, size=shape.bucket_size)
        for query, key in zip(query_codes, key_codes, strict=True)
    ]


def _aligned_round(
    query_codes: Int[Tensor, "S H n"], key_codes: Int[Tensor, "S H n"], *, lengths: Int[Tensor, " S"], size: int
) -> HashRound:
    """Windows of 2 * size sorted keys around the place where the chunk's middle query would sort."""
    (S, H, n), device = query_codes.shape, query_codes.device
    sorted_queries, query_order = query_codes.sort(dim=-1, stable=True)
    sorted_keys, key_order = key_codes.sort(dim=-1, stable=True)
    first = torch.arange(0, n, size, device=device)
    held = (lengths[:, None] - first).clamp(1, size)  # [S, C]
    middle = (first + held // 2).clamp_max(n - 1)[:, None].expand(S, H, -1)
    code = sorted_queries.gather(-1, middle)
    low, high = (torch.searchsorted(sorted_queries, code, right=right) for right in (False, True))
    left, right = (torch.searchsorted(sorted_keys, code.contiguous(), right=right) for right in (False, True))
    centre = left + (middle - low) * (right - left) // (high - low)
    limit = lengths[:, None, None]
    start = torch.minimum((centre - size).clamp_min(0), (limit - 2 * size).clamp_min(0))
    end = torch.minimum(start + 2 * size, limit)
    queries = query_order.new_full((S, H, len(first) * size), n)
    queries[..., :n] = query_order
    chunk_of = inverse(query_order) // size
    chunks, first_rank = _split(queries.view(S, H, -1, size), start, empty=n)
    return HashRound(
        key_order,
        chunks,
        first_rank,
        min(2 * size, n),
        start.gather(-1, chunk_of),
        end.gather(-1, chunk_of),
        is_shared=True,
    )


def _past_round(query_codes: Int[Tensor, "S H n"], key_codes: Int[Tensor, "S H n"], *, size: int) -> HashRound:
    """For every query the last `size` keys of its code at or before it.

    The keys of a code are cut into blocks of `size`. Queries whose last key lies in one block share its keys and those
    of the block before, `size` queries a chunk. A query's chunk, its place there and its keys' places all follow from
    counts over its own past, so the future changes nothing but, where it makes the fullest chunk fuller, the shapes of
    the products, and with them the last bit of a sum (decision 0008).
    """
    (S, H, n), device = query_codes.shape, query_codes.device
    position = torch.arange(n, device=device)
    sorted_keys, key_order = (key_codes * n + position).sort(dim=-1)
    sorted_queries, query_order = (query_codes * n + position).sort(dim=-1)
    end = torch.searchsorted(sorted_keys, sorted_queries, right=True)  # queries sorted, here and below
    code = sorted_queries // n
    begin = torch.searchsorted(sorted_keys, code * n)  # first key of the code
    held = end - begin
    block = (held - 1) // size  # -1 where no key is in the past
    is_first = torch.ones_like(block, dtype=torch.bool)
    is_first[..., 1:] = (code[..., 1:] != code[..., :-1]) | (block[..., 1:] != block[..., :-1])
    place = position - torch.where(is_first, position, 0).cummax(-1).values
    opens = (place % size == 0) & (held > 0)
    chunk = opens.cumsum(-1) - 1
    C = max(1, int(chunk[..., -1].max()) + 1)
    target = torch.where(held > 0, chunk * size + place % size, C * size)
    queries = query_order.new_full((S, H, C * size + 1), n).scatter_(-1, target, query_order)
    first = query_order.new_zeros(S, H, C + 1)
    first.scatter_(-1, torch.where(opens, chunk, C), begin + (block - 1) * size)
    start = torch.maximum(begin, end - size)
    back = inverse(query_order)
    chunks, first_rank = _split(queries[..., :-1].reshape(S, H, C, size), first[..., :-1], empty=n)
    return HashRound(
        key_order,
        chunks,
        first_rank,
        2 * size,
        start.gather(-1, back),
        end.gather(-1, back),
        is_shared=False,
    )


def _split(
    queries: Int[Tensor, "S H C c"], first: Int[Tensor, "S H C"], *, empty: int
) -> tuple[Int[Tensor, "S H C2 c2"], Int[Tensor, "S H C2"]]:
    """Cut large chunks into equal pieces that meet the same keys."""
    S, H, C, size = queries.shape
    pieces = -(-size // _MOST_QUERIES)
    height = -(-size // pieces)
    padded = F.pad(queries, (0, pieces * height - size), value=empty)
    return padded.view(S, H, C * pieces, height), first.repeat_interleave(pieces, -1)
