"""The kernels' choice as the value that describes any backend's."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.compiled.attention import Chosen, choose_nodes
from sortyard.ops.bucket_attention.compiled.problem import Problem, make_problem
from sortyard.ops.bucket_attention.descent import NO_NODE, Choice
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice
from sortyard.ops.lsh_tree import Leaves


@torch.no_grad()
def choose_compiled(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> TreeChoice:
    """Build a group's trees and let every chunk of queries choose, by the kernels.

    Args:
        q: Queries on a CPU.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The choice.
    """
    problem = make_problem(q, spec, group=group, causal=causal)
    chosen = choose_nodes(q, k, None, seed=spec.seed, problem=problem)
    numbers = problem.numbers
    # Devices are named, as in `choose_nodes`.
    starts = torch.arange(0, numbers["length"], numbers["chunk"], device="cpu")
    lengths, size = problem.lengths, numbers["bucket_size"]
    if causal:
        position = torch.arange(numbers["length"], device="cpu").expand(len(lengths), numbers["heads"], -1)
        leaves = Leaves(position, group.real, position, size)
        bounds = (torch.arange(numbers["leaves"] + 1, device="cpu") * size).expand(len(lengths), -1)
    else:
        bounds = torch.arange(numbers["leaves"] + 1, device="cpu") * lengths[:, None] >> numbers["levels"]
        leaves = _content_leaves(chosen, bounds, numbers["length"])
    sizes = [
        (bounds[:, step::step] - bounds[:, :-step:step])[:, : numbers["leaves"] // step]
        for step in (2**height for height in range(numbers["heights"]))
    ]
    return TreeChoice(
        leaves, sizes, _choice(chosen, problem), lengths, starts, starts // size * size if causal else None
    )


def _content_leaves(chosen: Chosen, bounds: Int[Tensor, "S borders"], n: int) -> Leaves:
    """Ranks as rows of equal width, one a leaf."""
    S, H, _ = chosen.order.shape
    width = -(-n // (bounds.shape[-1] - 1))
    slots = (bounds.shape[-1] - 1) * width
    position = torch.arange(n, device="cpu")
    real = position < bounds[:, -1:]
    order = torch.where(real[:, None], chosen.order.long(), position)
    leaf = chosen.leaf_of.long()
    rank = torch.empty_like(order).scatter_(-1, order, position.expand_as(order))
    slot_of = leaf * width + rank - bounds[:, None].expand(S, H, -1).gather(-1, leaf)
    slot_of = torch.where(real[:, None], slot_of, slots)
    places = order.new_zeros(S, H, slots + 1).scatter_(-1, slot_of, position.expand_as(order))
    used = torch.zeros(S, slots + 1, dtype=torch.bool, device="cpu").scatter_(-1, slot_of[:, 0], True)[:, :slots]
    return Leaves(places[..., :slots], used, slot_of, width)


def _choice(chosen: Chosen, problem: Problem) -> Choice:
    near, far = (torch.where(x < 0, NO_NODE, x.long()) for x in (chosen.near, chosen.far))
    by_height = []
    for height in range(problem.numbers["heights"]):
        here = (problem.far_heights == height).nonzero()[:, 0]
        by_height.append(far[..., here] if len(here) else None)
    return Choice(near, by_height)
