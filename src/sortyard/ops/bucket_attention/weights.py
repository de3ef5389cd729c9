"""Materialised attention weights [B, H, T, T]: for looking at, and for models asked to return them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sortyard.ops.bucket_attention.dense import visible_pairs
from sortyard.ops.bucket_attention.relation import bucket_relation
from sortyard.ops.bucket_attention.relation_value import BucketRelation
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.segments import Segments


def dense_weights(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    *,
    segments: Segments,
    causal: bool = False,
    window: int | None = None,
) -> Float[Tensor, "B H T T"]:
    """Softmax weights of dense attention; rows of pads are zero.

    Args:
        q: Queries.
        k: Keys.
        segments: The sequences of the batch; a query sees only keys of its own.
        causal: Whether a query sees only keys at or before it.
        window: Half-width of a sliding window in positions; None = no window.

    Returns:
        Weights, in float32 or wider.
    """
    visible = visible_pairs(segments, causal=causal, window=window)[:, None]
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        logits = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
    return _softmax(logits.masked_fill(~visible, -torch.inf))


def bucket_weights(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    segments: Segments,
    causal: bool = False,
    global_tokens: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B H T T"]:
    """Token-to-token weights of bucket attention, computed densely from the relation.

    A summary's weight is spread evenly over all members of its branch, whose mean value it stands for: the weights
    times the values are the attention's output.

    Args:
        q: Queries.
        k: Keys.
        spec: The settings.
        segments: The sequences of the batch.
        causal: Whether a query sees only keys at or before it.
        global_tokens: Tokens that every query of their sequence reads, besides the first ones.

    Returns:
        Weights, in float32 or wider; rows of pads are zero.
    """
    relation = bucket_relation(q, k, spec, causal=causal, segments=segments, global_tokens=global_tokens)
    with torch.autocast(q.device.type, enabled=False):
        return _relation_weights(q, k, relation)


def _relation_weights(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], relation: BucketRelation
) -> Float[Tensor, "B H T T"]:
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    scale = q.shape[-1] ** -0.5
    near = (q @ k.transpose(-1, -2) * scale).masked_fill(~relation.near, -torch.inf)
    if relation.multiplicity is not None:
        near = near + relation.multiplicity.clamp_min(1).to(wide).log()
    members = relation.members.to(wide)
    members = members / members.sum(-1, keepdim=True).clamp_min(1)
    far = q @ (members @ k).transpose(-1, -2) * scale + relation.counts.to(wide).log()
    weights = _softmax(torch.cat((near, far), dim=-1))
    length = q.shape[-2]
    return weights[..., :length] + weights[..., length:] @ members


def _softmax(logits: Tensor) -> Tensor:
    empty = torch.isneginf(logits).all(dim=-1, keepdim=True)
    return logits.masked_fill(empty, 0).softmax(dim=-1).masked_fill(empty, 0)
