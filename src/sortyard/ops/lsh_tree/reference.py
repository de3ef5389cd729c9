"""The trees of one sequence and head by plain recursion."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.lsh_tree.build import split_directions


@dataclass(frozen=True)
class Node:
    """A branch of a tree.

    Args:
        keys: Positions of its keys.
        children: Two halves, or none at a leaf.
    """

    keys: list[int]
    children: tuple["Node", ...]

    def all_nodes(self) -> list["Node"]:
        """The node and everything below it."""
        return [self, *(node for child in self.children for node in child.all_nodes())]


def content_tree(
    keys: Float[Tensor, "n K"],
    *,
    levels: int,
    power_steps: int,
    seed: int,
    queries: Float[Tensor, "n K"] | None = None,
) -> Node:
    """The balanced content tree: node j of level l holds ((j + 1) n >> l) - (j n >> l) keys, in rising position.

    Of keys with equal projections those of lower position go left.

    Args:
        keys: The sequence's keys.
        levels: Halvings.
        power_steps: Power iterations for each node's direction.
        seed: Seed of the start directions.
        queries: The sequence's queries, whose moments weigh each power step; None for the keys' own spread.

    Returns:
        The root.
    """
    n = len(keys)
    moments = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    if queries is not None:
        samples = min(n, 256)
        seen = [queries[(2 * i + 1) * n // (2 * samples)] for i in range(samples)]
        moments = torch.stack([torch.outer(query, query) for query in seen]).mean(0)
    directions = split_directions(levels, head_dim=keys.shape[-1], seed=seed).to(keys)

    def split(positions: list[int], level: int, j: int) -> Node:
        if level == levels:
            return Node(positions, ())
        centred = keys[positions] - keys[positions].mean(0)
        direction = directions[level]
        for _ in range(power_steps):
            direction = moments @ centred.T @ (centred @ direction)
            direction = direction / direction.norm().clamp_min(1e-12)
        ranks = (centred @ direction).argsort(stable=True).tolist()
        ordered = [positions[rank] for rank in ranks]
        border = ((2 * j + 1) * n >> (level + 1)) - (j * n >> level)
        left, right = sorted(ordered[:border]), sorted(ordered[border:])
        children = (split(left, level + 1, 2 * j), split(right, level + 1, 2 * j + 1))
        return Node(positions, children)

    return split(list(range(n)), 0, 0)


def position_tree(length: int, *, bucket_size: int) -> Node:
    """Consecutive blocks on a fixed grid, paired up to one root; the last leaves may lie behind the sequence.

    Args:
        length: Tokens of the sequence.
        bucket_size: Positions of a leaf.

    Returns:
        The root; nodes wholly behind the sequence are left out.
    """
    blocks = -(-length // bucket_size)
    height = (blocks - 1).bit_length()

    def build(first: int, height: int) -> Node:
        end = first + 2**height
        keys = list(range(first * bucket_size, min(length, end * bucket_size)))
        if height == 0:
            return Node(keys, ())
        middle = first + 2 ** (height - 1)
        right = (build(middle, height - 1),) if middle < blocks else ()
        return Node(keys, (build(first, height - 1), *right))

    return build(0, height)
