"""Bucket attention: softmax attention over exact keys nearby and summaries of the rest; README.md derives it."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.backend import Backend, available_backends, choose_backend
from sortyard.ops.bucket_attention.compiled import compiled_tree_attention
from sortyard.ops.bucket_attention.dense import attend_group, dense_attention
from sortyard.ops.bucket_attention.groups import Group, gather_groups, make_groups, scatter_groups
from sortyard.ops.bucket_attention.inputs import check_inputs
from sortyard.ops.bucket_attention.operator import call_operator
from sortyard.ops.bucket_attention.reference import attend_relation, reference_relation
from sortyard.ops.bucket_attention.relation import bucket_relation
from sortyard.ops.bucket_attention.relation_value import BucketRelation, relation_sparsity
from sortyard.ops.bucket_attention.rounds import rounds_attention
from sortyard.ops.bucket_attention.shapes import RoundsShape, expected_sparsity, resolve_shape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree import tree_attention
from sortyard.ops.bucket_attention.weights import bucket_weights, dense_weights
from sortyard.ops.segments import Segments, find_segments


def bucket_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    causal: bool = False,
    key_padding_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " boundaries"] | None = None,
    backend: str | None = None,
    global_tokens: Bool[Tensor, "B T"] | None = None,
    segments: Segments | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention over the exact keys and the summaries of each query's own sequence.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: Which pairs are exact.
        causal: Whether a query sees only keys at or before it; the choice of buckets then looks back only, too.
        key_padding_mask: True at real tokens.
        cu_seqlens: Boundaries of packed sequences over the flattened B * T positions.
        backend: "reference", "cpu", "compiled" or "triton"; chosen by device when left out.
        global_tokens: Tokens that every query of their sequence reads, besides the first ones.
        segments: The batch's sequences, instead of key_padding_mask and cu_seqlens.
        dropout_p: Probability of dropping a weight, in [0, 1); the reference drops none.

    Returns:
        One output a query; zeros at pads.

    Raises:
        ValueError: tensors of different shapes, types or devices, segments given twice or of another shape, an unknown
            or unavailable backend, or a hash that cannot be causal.
    """
    if segments is None or not segments.is_traced:
        check_inputs(q, k=k, v=v)
    segments = find_segments(
        q.shape[0],
        q.shape[2],
        segments=segments,
        key_padding_mask=key_padding_mask,
        cu_seqlens=cu_seqlens,
        device=q.device,
    )
    if segments.is_traced:
        if dropout_p:
            raise ValueError(f"dropout_p is {dropout_p}, but a traced graph has no dropout; call model.eval() first")
        return call_operator(
            q, k, v, spec, causal=causal, segments=segments, global_tokens=global_tokens, backend=backend
        )
    chosen = choose_backend(backend, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        if chosen == "reference":
            relation = reference_relation(q, k, spec, segments=segments, causal=causal, global_tokens=global_tokens)
            return attend_relation(q, k, v, relation)
        if all(resolve_shape(spec, length, causal) is None for length in segments.lengths):
            return dense_attention(q, k, v, segments=segments, causal=causal, dropout_p=dropout_p)
        groups = make_groups(segments, spec, causal=causal, global_tokens=global_tokens)
        outputs = []
        for group, query, key, value in zip(groups, *(gather_groups(x, groups) for x in (q, k, v)), strict=True):
            attend = _find_attention(group, chosen)
            out = attend(query, key, value, spec, group=group, causal=causal, dropout_p=dropout_p)
            outputs.append((group, out))
        return scatter_groups(outputs, like=q)


@runtime_checkable
class GroupAttention(Protocol):
    """Attention of a group of sequences of one shape."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: BucketSpec,
        *,
        group: Group,
        causal: bool,
        dropout_p: float,
    ) -> Tensor:
        """Attend; [S, H, n, K] throughout."""


def _find_attention(group: Group, backend: Backend) -> GroupAttention:
    if group.shape is None:
        return _dense_group
    if isinstance(group.shape, RoundsShape):
        return rounds_attention
    if backend == "compiled":
        return compiled_tree_attention
    if backend == "triton":
        from sortyard.ops.bucket_attention.triton_backend import triton_tree_attention

        return triton_tree_attention
    return tree_attention


def _dense_group(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,  # noqa: ARG001
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    return attend_group(q, k, v, group=group, causal=causal, dropout_p=dropout_p)


__all__ = [
    "BucketRelation",
    "BucketSpec",
    "available_backends",
    "bucket_attention",
    "bucket_relation",
    "bucket_weights",
    "choose_backend",
    "dense_attention",
    "dense_weights",
    "expected_sparsity",
    "relation_sparsity",
]
