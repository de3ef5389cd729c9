"""Attention by hash rounds: the logits of all parts side by side under one softmax, so plain autograd is exact."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.bucket_attention.gather_rows import gather_rows
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.hash_rounds import inverse
from sortyard.ops.bucket_attention.round_parts import Part, make_parts
from sortyard.ops.bucket_attention.spec import BucketSpec


def rounds_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by hash rounds; places at pads are arbitrary.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one shape.
        causal: Whether a query sees only keys at or before it.
        dropout_p: Probability of dropping a weight.

    Returns:
        One output a query.
    """
    S, H, n, K = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    parts = make_parts(q, k, spec, group=group, causal=causal)
    padded, pairs = F.pad(q, (0, 0, 0, 1)), torch.cat([k, v], -1)
    logits, values = [], []
    for part in parts:
        keys, value = torch.split(gather_rows(pairs, part.keys), K, dim=-1)  # [S, H, C, X, K]
        score = (gather_rows(padded, part.queries.clamp_max(n)) @ keys.transpose(-1, -2)).to(wide) * K**-0.5
        logits.append(_by_position(score.masked_fill(~part.keep, -torch.inf), part, n))
        values.append(value)
    joined = torch.cat(logits, -1)
    if not group.is_full:
        joined = joined.masked_fill(~group.real[:, None, :, None], 0.0)
    weights = F.dropout(joined.softmax(-1), dropout_p).to(q.dtype)
    out = q.new_zeros(S, H, n, K)
    for part, weight, value in zip(parts, torch.split(weights, [x.shape[-1] for x in logits], -1), values, strict=True):
        mixed = gather_rows(F.pad(weight, (0, 0, 0, 1)), part.queries.clamp_max(n)) @ value
        out = out + _by_position(mixed, part, n)
    return out


def _by_position(x: Float[Tensor, "S H C c X"], part: Part, n: int) -> Float[Tensor, "S H n X"]:
    """Rows of chunked queries back in the order of positions."""
    return gather_rows(x.flatten(2, 3), inverse(part.queries.flatten(2))[..., :n])
