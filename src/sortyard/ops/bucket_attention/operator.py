"""Bucket attention as one operator, for graphs: opaque to what traces them, as the choice of keys follows the data."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.segments import Segments, restore_segments


@torch.library.custom_op("sortyard::bucket_attention", mutates_args=())
def bucket_attention_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    positions: Tensor,
    global_tokens: Tensor | None,
    spec: str,
    causal: bool,
    backend: str | None,
) -> Tensor:
    """Outputs [B, H, T, K]; `ids` and `positions` are those of the segments, `spec` is the specification as JSON."""
    from sortyard.ops.bucket_attention import bucket_attention  # which calls this operator

    out = bucket_attention(
        q,
        k,
        v,
        BucketSpec(**json.loads(spec)),
        causal=causal,
        backend=backend,
        global_tokens=global_tokens,
        segments=restore_segments(ids, positions),
    )
    return out.contiguous()


@bucket_attention_operator.register_fake
def _(q: Tensor, *_: Tensor | str | bool | None) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def call_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: BucketSpec,
    *,
    causal: bool,
    segments: Segments,
    global_tokens: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Call the operator in a traced graph.

    Args:
        q: queries [B, H, T, K].
        k: keys.
        v: values.
        spec: which pairs are exact.
        causal: whether a query sees only keys at or before it.
        segments: the batch's sequences, traced.
        global_tokens: tokens that every query reads.
        backend: as for `bucket_attention`.

    Returns:
        Outputs, without a gradient.
    """
    out: Tensor = bucket_attention_operator(
        q, k, v, segments.ids, segments.positions, global_tokens, _as_text(spec), causal, backend
    )
    return out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # compilers cannot look into json
def _as_text(spec: BucketSpec) -> str:
    return json.dumps(asdict(spec))
