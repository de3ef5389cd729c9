"""Tree attention: per chunk one small dense attention over [near leaves | window | global tokens | summaries]."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.node_means import mean_nodes
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice, plan_tree
from sortyard.ops.bucket_attention.tree_pass import Scratch, TreePass, blocks


def tree_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by their trees; places at pads are arbitrary.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.
        dropout_p: Probability of dropping a weight.

    Returns:
        One output a query.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        tree, key_means = plan_tree(q.detach().to(wide), k.detach().to(wide), spec, group=group, causal=causal)
    if dropout_p:
        return _attend_with_dropout(q, k, v, tree, spec, group=group, dropout_p=dropout_p)
    out: Tensor = TreePass.apply(q, k, v, key_means, tree, spec, group)  # type: ignore[no-untyped-call]
    return out


def _attend_with_dropout(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    tree: TreeChoice,
    spec: BucketSpec,
    *,
    group: Group,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """The same by plain autograd and torch's own dropout, at the price of keeping every column for the backward."""
    k, v = k.contiguous(), v.contiguous()
    wide = torch.promote_types(k.dtype, torch.float32)  # counts of keys are no 16-bit numbers
    key_means, value_means = (mean_nodes(x, tree.leaves, tree.sizes).to(x.dtype) for x in (k, v))
    out = q.new_zeros(q.shape)
    whole = q.shape[1] * len(tree.chunk_starts)
    for block in blocks(tree, spec, group=group, heads=q.shape[1], dtype=wide, scratch=Scratch(), tiles=whole):
        tiles = F.scaled_dot_product_attention(
            block.take(q),
            block.gather(k, key_means),
            block.gather(v, value_means),
            attn_mask=block.bias.to(q.dtype, copy=True),
            dropout_p=dropout_p,
        )
        block.put(out, tiles)
    return out
