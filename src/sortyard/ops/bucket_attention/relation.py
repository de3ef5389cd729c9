"""The face of the relation: which pairs are exact, and which summary stands for how many keys at which query."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.backend import choose_backend
from sortyard.ops.bucket_attention.fast_relation import find_choice, group_relation
from sortyard.ops.bucket_attention.groups import gather_groups, make_groups
from sortyard.ops.bucket_attention.inputs import check_inputs
from sortyard.ops.bucket_attention.reference import reference_relation
from sortyard.ops.bucket_attention.relation_value import BucketRelation, SequenceRelation, assemble_relation
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.segments import Segments, find_segments


def bucket_relation(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    causal: bool = False,
    key_padding_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " boundaries"] | None = None,
    backend: str | None = None,
    global_tokens: Bool[Tensor, "B T"] | None = None,
    segments: Segments | None = None,
) -> BucketRelation:
    """The relation that defines bucket attention's result; of quadratic size.

    Args:
        q: Queries.
        k: Keys.
        spec: Which pairs are exact.
        causal: Whether a query sees only keys at or before it.
        key_padding_mask: True at real tokens.
        cu_seqlens: Boundaries of packed sequences over the flattened B * T positions.
        backend: "reference" asks the literal loops, another name that backend's own selection (rounding may tell them
            apart); chosen by device when left out.
        global_tokens: Tokens that every query of their sequence reads, besides the first ones.
        segments: The batch's sequences, instead of key_padding_mask and cu_seqlens.

    Returns:
        Exact pairs, summary nodes and what they stand for.

    Raises:
        ValueError: as for bucket_attention, and in a traced graph.
    """
    check_inputs(q, k=k)
    segments = find_segments(
        q.shape[0],
        q.shape[2],
        segments=segments,
        key_padding_mask=key_padding_mask,
        cu_seqlens=cu_seqlens,
        device=q.device,
    )
    if segments.is_traced:
        raise ValueError(
            "which token reads which cannot be told in an exported or compiled graph; leave output_attentions out and "
            "take attn_implementation other than eager, or call the model uncompiled"
        )
    chosen = choose_backend(backend, device=q.device)
    parts: dict[int, SequenceRelation] = {}
    with torch.autocast(q.device.type, enabled=False):
        if chosen == "reference":
            return reference_relation(q, k, spec, segments=segments, causal=causal, global_tokens=global_tokens)
        groups = make_groups(segments, spec, causal=causal, global_tokens=global_tokens)
        for group, query, key in zip(groups, *(gather_groups(x, groups) for x in (q, k)), strict=True):
            parts |= group_relation(query, key, spec, group=group, causal=causal, choose=find_choice(chosen))
    return assemble_relation(segments, parts, heads=q.shape[1], multiset=spec.multiset)
