"""What one query of a bucket head reads: exact keys, summaries, and what dense attention would have given for each."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.evaluation.buckets import BucketMaps, LayerInputs
from sortyard.ops.bucket_attention.backend import choose_backend
from sortyard.ops.bucket_attention.fast_relation import find_choice
from sortyard.ops.bucket_attention.groups import make_groups
from sortyard.ops.bucket_attention.shapes import TreeShape
from sortyard.ops.segments import find_segments


@dataclass(frozen=True)
class Summary:
    """One summary that a query uses.

    Attributes:
        keys: places of the keys that it stands for.
        num_members: keys whose mean it is; some of them may be exact for this query.
        mass: what dense attention gives to `keys` together.
        weight: what bucket attention gives to the summary.
    """

    keys: tuple[int, ...]
    num_members: int
    mass: float
    weight: float


@dataclass(frozen=True)
class QueryReading:
    """One query of one head.

    Attributes:
        exact: keys that are read exactly.
        summarised: keys that a summary stands for.
        mass: dense attention's softmax.
        weight: bucket attention's softmax; a summary's is spread evenly over its members, whose mean value it adds.
        summaries: the summaries, the heaviest first.
    """

    exact: Bool[Tensor, " T"]
    summarised: Bool[Tensor, " T"]
    mass: Float[Tensor, " T"]
    weight: Float[Tensor, " T"]
    summaries: tuple[Summary, ...]


@torch.no_grad()
def read_query(inputs: LayerInputs, maps: BucketMaps, *, head: int, query: int) -> QueryReading:
    """Account for every key of one query.

    Args:
        inputs: what the layer saw.
        maps: what `bucket_maps` returned for it.
        head: head, from 0.
        query: place of the query, from 0.

    Returns:
        The reading; its weights are the row of `bucket_weights`.
    """
    q, k = inputs.q[0, head, query].float(), inputs.k[0, head].float()
    exact, mass = maps.exact[head, query], maps.mass[head, query]
    counts, members = maps.relation.counts[0, head, query], maps.relation.members[0, head]
    used = counts.nonzero().flatten()
    inside = members[used].float()  # [U, T]
    sizes = inside.sum(-1).clamp(min=1)
    multiplicity = maps.relation.multiplicity
    times = exact.float() if multiplicity is None else multiplicity[0, head, query].float()
    scale = q.shape[-1] ** -0.5
    near = k @ q * scale + times.log()  # -inf where a key is not exact
    far = (inside @ k / sizes[:, None]) @ q * scale + counts[used].float().log()
    weights = torch.cat([near, far]).softmax(-1)
    own, shared = weights[: len(k)], weights[len(k) :]
    stands_for = inside.bool() & maps.summarised[head, query]
    summaries = [
        Summary(tuple(keys.nonzero().flatten().tolist()), int(size), float(mass[keys].sum()), float(weight))
        for keys, size, weight in zip(stands_for, sizes, shared, strict=True)
    ]
    return QueryReading(
        exact=exact,
        summarised=maps.summarised[head, query],
        mass=mass,
        weight=own + (shared / sizes) @ inside,
        summaries=tuple(sorted(summaries, key=lambda summary: summary.weight, reverse=True)),
    )


@torch.no_grad()
def bucket_numbers(inputs: LayerInputs) -> Int[Tensor, "H T"] | None:
    """Number the bucket that each key of the first sequence lies in.

    Args:
        inputs: what the layer saw.

    Returns:
        The leaf of every head's tree; None where there is no tree: the sequence is short enough to be dense, or
        rounds of hashing give a key one bucket a round.
    """
    q, k = inputs.q[:1].float(), inputs.k[:1].float()
    spec, causal = inputs.core.spec_on(q.device), inputs.core.causal
    segments = find_segments(1, q.shape[2], segments=None, key_padding_mask=None, cu_seqlens=None, device=q.device)
    (group,) = make_groups(segments, spec, causal=causal, global_tokens=None)
    if not isinstance(group.shape, TreeShape):
        return None
    choose = find_choice(choose_backend(device=q.device))
    leaves = choose(q, k, spec, group=group, causal=causal).leaves
    return (leaves.slot_of // leaves.width)[0, :, : q.shape[2]]


def pooled(values: Float[Tensor, "T T"], *, size: int) -> Float[Tensor, "S S"]:
    """Average a square picture down to at most `size` cells a side.

    Args:
        values: one value a pair.
        size: cells a side; a smaller picture stays as it is.
    """
    if len(values) <= size:
        return values
    return torch.nn.functional.adaptive_avg_pool2d(values[None, None], (size, size))[0, 0]
