"""The kernels' choice in the words of the plain path, so that the relation can be stated for it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.descent import NO_NODE, Choice
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice
from sortyard.ops.bucket_attention.triton_backend.problem import Problem, make_problem
from sortyard.ops.bucket_attention.triton_backend.tree import descend, sort_keys, sum_tree
from sortyard.ops.lsh_tree import Leaves


@torch.no_grad()
def state_choice(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> TreeChoice:
    """Trees and choices of a group, from the same launches that attention uses.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The choice.
    """
    S, H, n, K = q.shape
    problem = make_problem((S, H, n, K), spec, dtype=q.dtype, device=q.device, group=group, causal=causal)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        tree = sum_tree(k, k, sort_keys(q, k, problem), problem, needs_spreads=problem.adds_spread)
        choice = descend(q, tree, problem).long()
    starts = torch.arange(0, n, spec.query_chunk, device=q.device)
    bucket = problem.plan.width
    leaves = _block_leaves(problem) if causal else _sorted_leaves(tree.order.long(), problem)
    own_from = starts // bucket * bucket if causal else None
    return TreeChoice(leaves, _sizes(problem), _split_choice(choice, problem), problem.lengths.long(), starts, own_from)


def _split_choice(choice: Int[Tensor, "S H C columns"], problem: Problem) -> Choice:
    plan = problem.plan
    near = torch.where(choice[..., : plan.near] < 0, NO_NODE, choice[..., : plan.near]).sort(dim=-1).values
    far: list[Tensor | None] = []
    for height in range(plan.heights):
        count = plan.candidates[height] - plan.kept[height]
        first = plan.near + plan.first_far[height]
        rows = choice[..., first : first + count]
        far.append(torch.where(rows < 0, NO_NODE, rows - plan.first_row[height]) if count else None)
    return Choice(near, far)


def _sizes(problem: Problem) -> list[Tensor]:
    plan, lengths = problem.plan, problem.lengths.long()[:, None]
    if problem.causal:
        return [lengths.new_full((len(lengths), nodes), plan.width << h) for h, nodes in enumerate(plan.nodes)]
    bounds = (torch.arange(nodes + 1, device=lengths.device) for nodes in plan.nodes)
    return [(bound * lengths >> (plan.levels - h)).diff(dim=-1) for h, bound in enumerate(bounds)]


def _sorted_leaves(order: Int[Tensor, "S H n"], problem: Problem) -> Leaves:
    """Rows of `width` slots a leaf from the positions by rank."""
    S, H, n = order.shape
    plan, lengths = problem.plan, problem.lengths.long()[:, None]
    bounds = torch.arange(plan.nodes[0] + 1, device=order.device) * lengths >> plan.levels
    rank = bounds[:, :-1, None] + torch.arange(plan.width, device=order.device)
    used = (rank < bounds[:, 1:, None]).flatten(1)
    slots = order.gather(-1, rank.flatten(1).clamp_max(n - 1)[:, None].expand(S, H, -1))
    place = torch.where(used[:, None], slots, n)
    numbers = torch.arange(place.shape[-1], device=order.device).expand_as(place)
    slot_of = order.new_zeros(S, H, n + 1).scatter_(-1, place, numbers)[..., :n]
    return Leaves(slots, used, slot_of, plan.width)


def _block_leaves(problem: Problem) -> Leaves:
    """Blocks of `width` positions."""
    S, H, n, _ = problem.shape
    width, lengths = problem.plan.width, problem.lengths.long()
    position = torch.arange(n, device=lengths.device)
    order = F.pad(position, (0, -n % width), value=n - 1).expand(S, H, -1)
    used = torch.arange(order.shape[-1], device=lengths.device) < lengths[:, None]
    return Leaves(order, used, position.expand(S, H, -1), width)
