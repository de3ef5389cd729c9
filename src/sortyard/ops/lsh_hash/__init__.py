"""Locality-sensitive hash codes of queries and keys."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_hash import hashes


def lsh_codes(
    x: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    round_index: int = 0,
    keys: Float[Tensor, "B H T K"] | None = None,
    real: Bool[Tensor, "B T"] | None = None,
    causal: bool = False,
) -> Int[Tensor, "B H T"]:
    """Hash codes in sort order: vectors with near codes tend to be alike.

    Args:
        x: Queries or keys; one sequence a row.
        spec: Names the hash, its seed and, for the hashes that have them, the number or size of buckets.
        round_index: Which of the seeded hash functions, at least 0.
        keys: The keys that `kmeans` clusters; x itself when left out. The other hashes ignore them.
        real: Which places hold a token (they come first); all when left out. Codes elsewhere are arbitrary.
        causal: Centre each vector by the mean up to itself instead of by its whole row's.

    Returns:
        One code a vector, comparable between queries and keys of the same round.

    Raises:
        ValueError: `kmeans` with causal=True, which would look at the whole row.
    """
    one = range(round_index, round_index + 1)
    return round_codes(x, spec, rounds=one, keys=keys, real=real, causal=causal)[0]


def round_codes(
    x: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    rounds: range,
    keys: Float[Tensor, "B H T K"] | None = None,
    real: Bool[Tensor, "B T"] | None = None,
    causal: bool = False,
) -> Int[Tensor, "L B H T"]:
    """Hash codes of several rounds at once; arguments and errors as for `lsh_codes`.

    Args:
        x: Queries or keys; one sequence a row.
        spec: Names the hash.
        rounds: Which of the seeded hash functions.
        keys: The keys that `kmeans` clusters.
        real: Which places hold a token.
        causal: Centre each vector by the mean up to itself.

    Returns:
        One code a round and vector.
    """
    if spec.hash == "kmeans" and causal:
        raise ValueError("hash is 'kmeans', which clusters the whole row, future included: use hash 'gray' when causal")
    wide = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if real is None:
        real = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if spec.hash == "gray":
            # Projecting first: the centring then passes over a few heights a vector instead of over its K entries.
            planes = hashes.gray_projections(x.shape[-1], seed=spec.seed, rounds=rounds).to(wide)
            return hashes.gray_codes(_centre(wide @ planes, real, causal=causal)).movedim(-1, 0)
        if spec.hash in hashes.CENTRED:
            wide = _centre(wide, real, causal=causal)
        key = wide
        if spec.hash == "kmeans" and keys is not None:
            key = _centre(keys.detach().to(wide.dtype), real, causal=False)
        return torch.stack([_hash(wide, key, spec, round_index=index, lengths=real.sum(-1)) for index in rounds])


def _hash(
    x: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    round_index: int,
    lengths: Int[Tensor, " B"],
) -> Int[Tensor, "B H T"]:
    if spec.hash == "kmeans":
        return _kmeans_codes(x, keys, spec, round_index=round_index, lengths=lengths)
    if spec.hash == "cross_polytope":
        return hashes.cross_polytope_codes(x, seed=spec.seed, round_index=round_index)
    if spec.hash == "e2lsh":
        return hashes.e2lsh_codes(x, seed=spec.seed, round_index=round_index)
    if spec.hash == "sign_sum":
        return hashes.sign_sum_codes(x, seed=spec.seed, round_index=round_index, num_buckets=spec.num_buckets or 64)
    positions = torch.arange(x.shape[2], device=x.device)
    return hashes.random_codes(positions, seed=spec.seed, round_index=round_index).expand(x.shape[:-1])


def _kmeans_codes(
    x: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    round_index: int,
    lengths: Int[Tensor, " B"],
) -> Int[Tensor, "B H T"]:
    size = spec.bucket_size if spec.num_buckets is None else -(-x.shape[2] // spec.num_buckets)
    centroids, counts = hashes.kmeans_centroids(
        keys, lengths=lengths, bucket_size=size, seed=spec.seed, round_index=round_index
    )
    return hashes.nearest_centroids(x, centroids, counts=counts)


def _centre(x: Float[Tensor, "B H T F"], real: Bool[Tensor, "B T"], *, causal: bool) -> Float[Tensor, "B H T F"]:
    if causal:
        count = torch.arange(1, x.shape[2] + 1, device=x.device)[:, None]
        return x - x.cumsum(-2) / count
    weight = real[:, None, None].to(x)
    return x - (weight / weight.sum(-1, keepdim=True).clamp_min(1)) @ x


__all__ = ["lsh_codes", "round_codes"]
