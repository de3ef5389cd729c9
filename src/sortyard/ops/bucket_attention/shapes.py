"""What a specification becomes at one length: levels, buckets and the expected sparsity. Host arithmetic only."""

from dataclasses import dataclass, replace
from functools import lru_cache

from sortyard.ops.bucket_attention.spec import BucketSpec

_CODE_BITS = 16


@dataclass(frozen=True)
class TreeShape:
    """A tree at one length; sequences that share it are computed together.

    Args:
        bucket_size: Largest number of keys in a leaf; exact when the tree is one of positions.
        levels: Times the keys are halved (bidirectional), or heights of the position tree (causal).
        near: Leaves a chunk may read exactly.
        beam: Nodes a chunk keeps open at a level.
    """

    bucket_size: int
    levels: int
    near: int
    beam: int


@dataclass(frozen=True)
class RoundsShape:
    """Hash rounds at one length; sequences that share it are computed together.

    Args:
        bucket_size: Queries of a chunk, and half the keys of its window.
        code_bits: Leading bits of a sign code that count as the bucket (causal).
        size_class: Bit length of the sequence length, so that one group pads less than twofold.
    """

    bucket_size: int
    code_bits: int
    size_class: int


@lru_cache(maxsize=4096)
def resolve_shape(spec: BucketSpec, length: int, causal: bool) -> TreeShape | RoundsShape | None:
    """The shape of one sequence's buckets; None where the result is dense attention."""
    if length <= spec.dense_up_to:
        return None
    if spec.selection == "rounds":
        return _rounds_shape(spec, length, causal)
    shape = _tree_shape(spec, length, causal)
    if spec.target_sparsity is not None:
        shape = _meet_target(spec, shape, length, causal)
    blocks = _open_blocks(spec, shape, length) if causal else 2**shape.levels
    return None if blocks <= shape.near and blocks // 2 <= shape.beam else shape


def _tree_shape(spec: BucketSpec, length: int, causal: bool) -> TreeShape:
    most = length.bit_length() - 1
    if causal:
        size = spec.bucket_size if spec.num_buckets is None else -(-length // spec.num_buckets)
        return TreeShape(size, (length // size).bit_length(), spec.near_buckets, spec.beam)
    if spec.num_buckets is not None:
        levels = min(spec.num_buckets.bit_length() - 1, most)
    else:  # ceil(log2(length / bucket_size)); one key a leaf is the end
        levels = min((-(-length // spec.bucket_size) - 1).bit_length(), most)
    return TreeShape(-(-length // 2**levels), levels, spec.near_buckets, spec.beam)


def _meet_target(spec: BucketSpec, shape: TreeShape, length: int, causal: bool) -> TreeShape:
    """The largest near count that still leaves out the target's share of pairs; at least 1."""

    def candidate(near: int) -> TreeShape:
        return replace(shape, near=near, beam=max(spec.beam, near))

    low, high = 1, max(1, _open_blocks(spec, shape, length) if causal else 2**shape.levels)
    while low < high:
        middle = (low + high + 1) // 2
        if _tree_sparsity(spec, candidate(middle), length, causal) >= (spec.target_sparsity or 0.0):
            low = middle
        else:
            high = middle - 1
    return candidate(low)


def _rounds_shape(spec: BucketSpec, length: int, causal: bool) -> RoundsShape | None:
    size = spec.bucket_size
    if spec.num_buckets is not None:
        size = -(-length // spec.num_buckets)
    if spec.target_sparsity is not None:
        visible = (length + 1) / 2 if causal else length
        budget = visible * (1.0 - spec.target_sparsity) - _fixed_keys(spec, causal)
        size = max(1, int(budget / (spec.num_hash_rounds * (1 if causal else 2))))
    if not causal and not spec.multiset and 2 * size >= length:
        return None
    bits = min(_CODE_BITS, max(1, (-(-length // size) - 1).bit_length()))
    return RoundsShape(size, bits, length.bit_length())


def _fixed_keys(spec: BucketSpec, causal: bool) -> int:
    return spec.local_window * (1 if causal else 2) + 1 + spec.num_global_tokens


def _open_blocks(spec: BucketSpec, shape: TreeShape, length: int) -> int:
    """Past blocks that the last chunk of a causal sequence can see."""
    return (length - 1) // spec.query_chunk * spec.query_chunk // shape.bucket_size


def expected_sparsity(spec: BucketSpec, length: int, causal: bool) -> float:
    """The share of visible pairs left out at one length, by counting places and never looking at a tensor.

    The local window and the global tokens are counted as if no bucket held them, so the true value is
    this or a little higher. Dense sequences give 0.

    Args:
        spec: The attention's settings.
        length: Tokens of the sequence, at least 1.
        causal: Whether a query sees only keys at or before it.

    Returns:
        A number from 0 (dense) up to 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    shape = resolve_shape(spec, length, causal)
    if shape is None:
        return 0.0
    if isinstance(shape, TreeShape):
        return max(0.0, _tree_sparsity(spec, shape, length, causal))
    visible = (length + 1) / 2 if causal else length
    keys = spec.num_hash_rounds * shape.bucket_size * (1 if causal else 2) + _fixed_keys(spec, causal)
    return max(0.0, 1.0 - keys / visible)


def _tree_sparsity(spec: BucketSpec, shape: TreeShape, length: int, causal: bool) -> float:
    if not causal:
        near, far = _count_descent(shape, [0] * shape.levels, kept=1)
        return 1.0 - (near * length / (1 << shape.levels) + far + _fixed_keys(spec, causal)) / length
    keys = _own_keys(spec, shape.bucket_size, length)
    for start in range(0, length, spec.query_chunk):
        blocks = start // shape.bucket_size
        borders = [blocks >> height & 1 for height in reversed(range(blocks.bit_length()))]
        near, far = _count_descent(shape, borders, kept=0)
        keys += min(spec.query_chunk, length - start) * (near * shape.bucket_size + far)
    return 1.0 - keys / (length * (length + 1) / 2)


def _count_descent(shape: TreeShape, borders: list[int], *, kept: int) -> tuple[int, int]:
    """Near leaves and summaries of one chunk; `borders` says where a level adds the border's past child."""
    far = 0
    for remaining, border in zip(reversed(range(len(borders))), borders, strict=True):
        candidates = 2 * kept + border
        kept = min(candidates, shape.beam if remaining else shape.near)
        far += candidates - kept
    return kept, far


@lru_cache(maxsize=4096)
def _own_keys(spec: BucketSpec, bucket_size: int, length: int) -> int:
    """Exact keys of a causal sequence that its window, unfinished block and global tokens hold."""
    total = 0
    for query in range(length):
        border = query // spec.query_chunk * spec.query_chunk // bucket_size * bucket_size
        first = max(0, min(query - spec.local_window, border))
        total += query - first + 1 + min(spec.num_global_tokens, first)
    return total
