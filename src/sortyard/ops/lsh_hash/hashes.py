"""The hash of a round: vectors to integers whose order puts alike vectors side by side."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.spec import HashName

CODE_BITS = 16
# Leaves about 16 steps to a standard deviation of the projection of vectors of unit variance.
_E2LSH_WIDTH = 1.0 / 16.0
_SIGN_SUM_DIRECTIONS = 128
_SIGN_SUM_FACTOR = 1319
_KMEANS_STEPS = 3

CENTRED: frozenset[HashName] = frozenset({"gray", "cross_polytope", "e2lsh", "kmeans"})


def round_generator(seed: int, round_index: int) -> torch.Generator:
    """The generator of one round's projections: the same for all heads, sequences and devices."""
    return torch.Generator("cpu").manual_seed(seed * 1_000_003 + round_index)


def draw_normals(*shape: int, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal numbers in float32 on the CPU, whatever device and type are torch's defaults."""
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


def draw_uniform(generator: torch.Generator) -> float:
    """A number from 0 to 1, drawn as `draw_normals` draws."""
    return float(torch.rand((), generator=generator, device="cpu", dtype=torch.float32))


def gray_projections(width: int, *, seed: int, rounds: range) -> Float[Tensor, "K planes"]:
    """The normals of every round's 16 hyperplanes, side by side, so that one product serves all rounds."""
    drawn = [draw_normals(width, CODE_BITS, generator=round_generator(seed, index)) for index in rounds]
    return torch.cat(drawn, -1)


def gray_codes(heights: Float[Tensor, "*batch planes"]) -> Int[Tensor, "*batch L"]:
    """SimHash of each round: the rank in the Gray sequence of its 16 sign bits; neighbours differ in one sign.

    Args:
        heights: Signed distances from the rounds' hyperplanes.
    """
    signs = (heights >= 0).to(heights.dtype).view(*heights.shape[:-1], -1, CODE_BITS)  # [..., L, 16]
    places = 2.0 ** torch.arange(CODE_BITS - 1, -1, -1, device=heights.device, dtype=heights.dtype)
    # A product is faster than adding up integers, and exact: every term is a power of two below 2 ** 16.
    return inverse_gray((signs @ places).long())


def inverse_gray(pattern: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """The rank r whose Gray code r ^ (r >> 1) is the given pattern of 16 bits: the running XOR from the highest bit."""
    rank = pattern
    for shift in (1, 2, 4, 8):
        rank = rank ^ (rank >> shift)
    return rank


def cross_polytope_codes(x: Float[Tensor, "*batch K"], *, seed: int, round_index: int) -> Int[Tensor, "*batch"]:
    """The nearest of the 2 K signed axes after a random projection."""
    projections = draw_normals(x.shape[-1], x.shape[-1], generator=round_generator(seed, round_index)).to(x)
    projected = x @ projections
    return torch.cat([projected, -projected], -1).argmax(-1)


def e2lsh_codes(x: Float[Tensor, "*batch K"], *, seed: int, round_index: int) -> Int[Tensor, "*batch"]:
    """floor((x . a + b) / w): the cell of a one-dimensional projection, in the projection's order."""
    generator = round_generator(seed, round_index)
    direction = (draw_normals(x.shape[-1], generator=generator) * x.shape[-1] ** -0.5).to(x)
    offset = draw_uniform(generator) * _E2LSH_WIDTH
    cells: Tensor = ((x @ direction + offset) / _E2LSH_WIDTH).floor().long()
    return cells


def sign_sum_codes(
    x: Float[Tensor, "*batch K"], *, seed: int, round_index: int, num_buckets: int
) -> Int[Tensor, "*batch"]:
    """(sum of signs * 1319) mod num_buckets: it forgets which sign, so it is no better than `random`; a control."""
    generator = round_generator(seed, round_index)
    projections = draw_normals(x.shape[-1], _SIGN_SUM_DIRECTIONS, generator=generator).to(x)
    return ((x @ projections).sign().sum(-1).long() * _SIGN_SUM_FACTOR) % num_buckets


def random_codes(positions: Int[Tensor, "*batch"], *, seed: int, round_index: int) -> Int[Tensor, "*batch"]:
    """A seeded 16-bit code a position, whatever the vector: a control.

    An integer mix rather than a generator, so that a code never depends on the length of the row.
    """
    salt = int(torch.randint(2**31, (), generator=round_generator(seed, round_index), device="cpu"))
    mixed = (positions + salt) & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x119DE1F3):
        mixed = ((mixed ^ (mixed >> 16)) * factor) & 0xFFFFFFFF
    codes: Tensor = (mixed ^ (mixed >> 16)) & (2**CODE_BITS - 1)
    return codes


def kmeans_centroids(
    keys: Float[Tensor, "S H n K"], *, lengths: Int[Tensor, " S"], bucket_size: int, seed: int, round_index: int
) -> tuple[Float[Tensor, "S H U K"], Int[Tensor, " S"]]:
    """A few Lloyd steps over each sequence's keys, clusters in the order of a random projection; a control.

    Args:
        keys: Keys, those of a sequence first.
        lengths: Keys of each sequence.
        bucket_size: Keys that a cluster holds on average.
        seed: Seed of the start and of the projection.
        round_index: Which round.

    Returns:
        The centroids, and how many of them each sequence has.
    """
    S, H, n, K = keys.shape
    counts = -(-lengths // bucket_size)
    place = torch.arange(-(-n // bucket_size), device=keys.device)
    position = torch.arange(n, device=keys.device)
    is_real = position < lengths[:, None]
    drawn = random_codes(position, seed=seed, round_index=round_index).expand(S, n)
    # Different keys to start from: two equal centroids would leave a tie for rounding to settle.
    start = drawn.masked_fill(~is_real, 1 << CODE_BITS).argsort(dim=-1, stable=True)[:, : len(place)]
    centroids = keys.gather(-2, start[:, None, :, None].expand(S, H, -1, K))
    real = is_real.to(keys)[:, None, :, None]
    for _ in range(_KMEANS_STEPS):
        index = nearest_centroids(keys, centroids, counts=counts)[..., None]
        sizes = keys.new_zeros(S, H, len(place), 1).scatter_add_(-2, index, real.expand(S, H, n, 1))
        sums = torch.zeros_like(centroids).scatter_add_(-2, index.expand(S, H, n, K), keys * real)
        centroids = torch.where(sizes > 0, sums / sizes.clamp_min(1), centroids)
    direction = draw_normals(K, generator=round_generator(seed, round_index)).to(keys)
    unused = (place >= counts[:, None])[:, None]
    order = (centroids @ direction).masked_fill(unused, torch.inf).argsort(dim=-1, stable=True)
    return centroids.gather(-2, order[..., None].expand_as(centroids)), counts


def nearest_centroids(
    x: Float[Tensor, "S H n K"], centroids: Float[Tensor, "S H U K"], *, counts: Int[Tensor, " S"]
) -> Int[Tensor, "S H n"]:
    """Number of the centroid at the smallest distance among the first `counts` of each sequence."""
    distance = centroids.square().sum(-1)[..., None, :] - 2 * x @ centroids.transpose(-1, -2)
    unused = torch.arange(centroids.shape[-2], device=x.device) >= counts[:, None, None, None]
    return distance.masked_fill(unused, torch.inf).argmin(-1)
