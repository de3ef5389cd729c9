"""The relation as the fast paths choose it, sequence by sequence."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.backend import Backend
from sortyard.ops.bucket_attention.compiled import choose_compiled
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.relation_value import SequenceRelation
from sortyard.ops.bucket_attention.round_parts import make_parts
from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice, choose_by_tree


@runtime_checkable
class TreeChooser(Protocol):
    """A backend's way to a tree's choice."""

    def __call__(self, q: Tensor, k: Tensor, spec: BucketSpec, *, group: Group, causal: bool) -> TreeChoice:
        """Choose; [S, H, n, K] both."""


def find_choice(backend: Backend) -> TreeChooser:
    """How a fast backend chooses by its trees."""
    if backend == "compiled":
        return choose_compiled
    if backend == "triton":
        from sortyard.ops.bucket_attention.triton_backend import triton_choose

        return triton_choose
    return choose_by_tree


@torch.no_grad()
def group_relation(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    choose: TreeChooser = choose_by_tree,
) -> dict[int, SequenceRelation]:
    """The relation of every sequence of a group, from the same choice that the fast paths make.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.
        choose: The backend's choice by trees.

    Returns:
        Each sequence's relation by its number.
    """
    if group.shape is None:
        near = group.real[:, None, :, None] & group.real[:, None, None, :]
        near = (near.tril() if causal else near).long().expand(-1, q.shape[1], -1, -1)
        members, counts = near[:, :, :0] > 0, near[..., :0]
    elif isinstance(group.shape, TreeShape):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        tree = choose(q.to(wide), k.to(wide), spec, group=group, causal=causal)
        near, members, counts = _tree_relation(tree, spec, group=group, causal=causal)
    else:
        near = _rounds_relation(q, k, spec, group=group, causal=causal)
        members, counts = near[:, :, :0] > 0, near[..., :0]
    return {
        number: SequenceRelation(near[s, :, :n, :n], members[s, :, :, :n], counts[s, :, :n])
        for s, (number, n) in enumerate(zip(group.sequences, group.lengths, strict=True))
    }


def _rounds_relation(q: Tensor, k: Tensor, spec: BucketSpec, *, group: Group, causal: bool) -> Tensor:
    S, H, n, _ = q.shape
    near = torch.zeros(S, H, n * n, dtype=torch.long, device=q.device)
    for part in make_parts(q, k, spec, group=group, causal=causal):
        keep = part.keep & (part.queries < n)[..., None]
        pair = part.queries.clamp_max(n - 1)[..., :, None] * n + part.keys[..., None, :]
        near.scatter_add_(-1, pair.flatten(2), keep.flatten(2).long())
    return near.view(S, H, n, n)


def _tree_relation(
    tree: TreeChoice, spec: BucketSpec, *, group: Group, causal: bool
) -> tuple[Int[Tensor, "S H n n"], Bool[Tensor, "S H M n"], Int[Tensor, "S H n M"]]:
    n = tree.leaves.slot_of.shape[-1]
    leaf = tree.leaves.slot_of // tree.leaves.width  # [S, H, n]
    position = torch.arange(n, device=leaf.device)
    chunk_of = position // spec.query_chunk
    query, key = position[:, None], position
    local = (query - key).abs() <= spec.local_window
    if tree.own_from is not None:
        local = local | (key >= tree.own_from[chunk_of][:, None])
    is_global = (group.globals_at[..., None] == position).any(1)  # [S, n]
    visible = (group.real[:, :, None] & group.real[:, None, :])[:, None]
    visible = visible.tril() if causal else visible
    chosen = (leaf[:, :, None, :, None] == tree.choice.near[..., None, :]).any(-1)  # [S, H, C, n]
    near = (chosen[:, :, chunk_of] | local | is_global[:, None, None]) & visible
    hidden = _by_leaf((visible & ~near), leaf, leaves=tree.sizes[0].shape[-1])
    members, counts = [], []
    for height, (far, size) in enumerate(zip(tree.choice.far, tree.sizes, strict=True)):
        if height:
            pairs = hidden.shape[-1] // 2
            hidden = torch.unflatten(hidden[..., : 2 * pairs], -1, (pairs, 2)).sum(-1)
        if far is None:
            continue
        nodes = torch.arange(size.shape[-1], device=leaf.device)
        inside = (leaf >> height)[:, :, None] == nodes[:, None]  # [S, H, nodes, n]
        members.append(inside & group.real[:, None, None])
        used = (far[..., None] == nodes).any(-2)[:, :, chunk_of]  # [S, H, n, nodes]
        counts.append(hidden.long() * used)
    empty = near[:, :, :0]
    return near.long(), torch.cat([empty, *members], 2), torch.cat([empty.transpose(-1, -2).long(), *counts], -1)


def _by_leaf(
    hidden: Bool[Tensor, "S H n n"], leaf: Int[Tensor, "S H n"], *, leaves: int
) -> Int[Tensor, "S H n leaves"]:
    """How many of each leaf's keys a query does not read exactly; keys of no leaf are left out."""
    S, H, n, _ = hidden.shape
    index = leaf.clamp(0, leaves)[:, :, None].expand(S, H, n, n)
    counts = torch.zeros(S, H, n, leaves + 1, dtype=torch.int32, device=leaf.device)
    return counts.scatter_add_(-1, index, hidden.int())[..., :leaves]
