"""The hash codes of single vectors by plain loops, from the same seeded projections; `random` is its own definition."""

import math

from jaxtyping import Float
from torch import Tensor

from sortyard.ops.lsh_hash.hashes import CODE_BITS, draw_normals, draw_uniform, round_generator


def gray_code(x: Float[Tensor, " K"], *, seed: int, round_index: int) -> int:
    """The place of the sign pattern in the reflected Gray sequence, found by reflecting bit after bit."""
    projections = draw_normals(len(x), CODE_BITS, generator=round_generator(seed, round_index)).to(x)
    rank, is_reflected = 0, False
    for bit in range(CODE_BITS):
        is_set = float(x @ projections[:, bit]) >= 0
        rank = 2 * rank + (is_set != is_reflected)
        is_reflected = is_reflected != is_set
    return rank


def cross_polytope_code(x: Float[Tensor, " K"], *, seed: int, round_index: int) -> int:
    """The signed axis with the largest coordinate after a random projection."""
    projections = draw_normals(len(x), len(x), generator=round_generator(seed, round_index)).to(x)
    coordinates = [float(x @ projections[:, axis]) for axis in range(len(x))]
    signed = coordinates + [-value for value in coordinates]
    return max(range(len(signed)), key=signed.__getitem__)


def e2lsh_code(x: Float[Tensor, " K"], *, seed: int, round_index: int) -> int:
    """The sixteenth of a unit that the shifted projection falls into."""
    generator = round_generator(seed, round_index)
    direction = (draw_normals(len(x), generator=generator) / math.sqrt(len(x))).to(x)
    shift = draw_uniform(generator)
    return math.floor(16 * float(x @ direction) + shift)


def sign_sum_code(x: Float[Tensor, " K"], *, seed: int, round_index: int, num_buckets: int) -> int:
    """1319 times the sum of 128 signs, modulo the number of buckets."""
    projections = draw_normals(len(x), 128, generator=round_generator(seed, round_index)).to(x)
    projected = [float(x @ projections[:, p]) for p in range(128)]
    return (sum(value > 0 for value in projected) - sum(value < 0 for value in projected)) * 1319 % num_buckets
