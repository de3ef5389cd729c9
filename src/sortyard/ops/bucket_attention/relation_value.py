"""The relation of a call: which pairs are exact, and which summary stands for how many keys at which query."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sortyard.ops.segments import Segments


@dataclass(frozen=True)
class BucketRelation:
    """What bucket attention computes, pair by pair; of quadratic size, for tests and evaluation.

    Args:
        near: Exact pairs of a query (first T) and a key.
        members: Keys that each summary node's mean is taken over; M may be 0.
        counts: How many keys node m stands for at query i; 0 where it is not used.
        multiplicity: How often a pair counts; None unless pairs may count more than once.
    """

    near: Bool[Tensor, "B H T T"]
    members: Bool[Tensor, "B H M T"]
    counts: Int[Tensor, "B H T M"]
    multiplicity: Int[Tensor, "B H T T"] | None = None


@dataclass(frozen=True)
class SequenceRelation:
    """The relation of one sequence within itself: keys and queries are its n real tokens.

    Args:
        near: How often each pair counts, 0 for pairs that are not exact.
        members: Keys of each summary node.
        counts: Keys that a node stands for at a query.
    """

    near: Int[Tensor, "H n n"]
    members: Bool[Tensor, "H m n"]
    counts: Int[Tensor, "H n m"]


def relation_sparsity(relation: BucketRelation, *, segments: Segments, causal: bool = False) -> float:
    """The share of visible pairs that are not computed; a summary counts as one key.

    Args:
        relation: The relation of a call.
        segments: The call's sequences.
        causal: Whether a query sees only keys at or before it.

    Returns:
        1 - (exact pairs + used summaries) / visible pairs, over all heads; 0 for an empty batch.
    """
    visible = sum(n * (n + 1) // 2 if causal else n * n for n in segments.lengths) * relation.near.shape[1]
    if visible == 0:
        return 0.0
    exact = relation.near if relation.multiplicity is None else relation.multiplicity
    return 1.0 - (int(exact.sum()) + int((relation.counts > 0).sum())) / visible


def assemble_relation(
    segments: Segments, parts: dict[int, SequenceRelation], *, heads: int, multiset: bool
) -> BucketRelation:
    """Put the relations of the sequences to their places in the batch.

    Args:
        segments: The batch's sequences.
        parts: The relation of every sequence by its number.
        heads: Heads H.
        multiset: Whether to keep how often a pair counts.

    Returns:
        The relation of the whole batch; nodes of packed sequences stand one after another.
    """
    B, T, device = segments.batch_size, segments.length, segments.ids.device
    tokens = torch.split(segments.token_index, list(segments.lengths))
    rows = [int(index[0]) // T for index in tokens]
    node_end = [0] * B
    for number, row in enumerate(rows):
        node_end[row] += parts[number].members.shape[1]
    M = max(node_end, default=0)
    near = torch.zeros(B, heads, T, T, dtype=torch.long, device=device)
    members = torch.zeros(B, heads, M, T, dtype=torch.bool, device=device)
    counts = torch.zeros(B, heads, T, M, dtype=torch.long, device=device)
    first = [0] * B
    for number, row in enumerate(rows):
        part, at = parts[number], tokens[number] % T
        nodes = slice(first[row], first[row] + part.members.shape[1])
        near[row, :, at[:, None], at] = part.near
        members[row, :, nodes][..., at] = part.members
        counts[row, :, at, nodes] = part.counts
        first[row] = nodes.stop
    return BucketRelation(near > 0, members, counts, near if multiset else None)
