"""Means and spreads of keys and values over all nodes of a tree, bottom up."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.gather_rows import gather_rows
from sortyard.ops.lsh_tree import Leaves, take_rows

_ELEMENTS_AT_A_TIME = 1 << 20


def mean_nodes(
    x: Float[Tensor, "S H n K"], leaves: Leaves, sizes: list[Int[Tensor, "S _nodes"]]
) -> Float[Tensor, "S H nodes K"]:
    """Means of keys or values over all nodes, leaves first, in float32 or wider; differentiable."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    count, width = sizes[0].shape[-1], leaves.width
    used = None if leaves.used is None else leaves.used[:, None, : count * width, None]
    parts = []
    for heads in _few_heads(x):
        rows = gather_rows(x[:, heads], leaves.order[:, heads, : count * width])
        rows = rows if used is None else rows * used
        parts.append(torch.unflatten(rows, -2, (count, width)).sum(-2, dtype=wide))
    sums = [torch.cat(parts, 1)]
    while len(sums) < len(sizes):
        sums.append(pair_sums(sums[-1]))
    return torch.cat([total / size[:, None, :, None] for total, size in zip(sums, sizes, strict=True)], -2)


def add_shares(
    total: Float[Tensor, "S H n K"],
    grad: Float[Tensor, "S H nodes K"],
    leaves: Leaves,
    sizes: list[Int[Tensor, "S _nodes"]],
    *,
    real: Bool[Tensor, "S n"],
) -> None:
    """The gradient of `mean_nodes`: every key's row of `total` gets its share of what its nodes get."""
    parts = torch.split(grad, [size.shape[-1] for size in sizes], dim=-2)
    shares = grad[..., :0, :]
    for part, size in zip(reversed(parts), reversed(sizes), strict=True):
        inherited = shares.repeat_interleave(2, -2)
        shares = part / size[:, None, :, None]
        shares[..., : inherited.shape[-2], :] += inherited
    nowhere = sizes[0].shape[-1]
    shares = F.pad(shares, (0, 0, 0, 1))
    leaf = (leaves.slot_of // leaves.width).clamp_max(nowhere).masked_fill(~real[:, None], nowhere)
    for heads in _few_heads(total):
        total[:, heads] += take_rows(shares[:, heads], leaf[:, heads])


def _few_heads(x: Float[Tensor, "S H n K"]) -> list[slice]:
    """Heads that go at a time, so that rows on their way do not leave the processor's cache."""
    step = max(1, _ELEMENTS_AT_A_TIME // max(1, x[:, 0].numel()))
    return [slice(first, first + step) for first in range(0, x.shape[1], step)]


def pair_sums(x: Float[Tensor, "S *H _nodes K"] | Int[Tensor, "S _nodes 1"]) -> Tensor:
    """Sums over siblings; a last node without a sibling never lies wholly in the past and has no parent."""
    pairs = x.shape[-2] // 2
    return torch.unflatten(x[..., : 2 * pairs, :], -2, (pairs, 2)).sum(-2)


@torch.no_grad()
def node_spreads(
    keys: Float[Tensor, "S H n K"],
    means: list[Float[Tensor, "S H _nodes K"]],
    leaves: Leaves,
    sizes: list[Int[Tensor, "S _nodes"]],
) -> list[Float[Tensor, "S H _nodes"]]:
    """Mean squared distance of each node's keys to their mean, not below a millionth of that of all keys."""
    count, width = sizes[0].shape[-1], leaves.width
    used = None if leaves.used is None else torch.unflatten(leaves.used, -1, (count, width))[:, None]
    parts = []
    for heads in _few_heads(keys):
        rows = torch.unflatten(gather_rows(keys[:, heads], leaves.order[:, heads]), -2, (count, width))
        away = (rows - means[0][:, heads, :, None]).square_().sum(-1)
        parts.append((away if used is None else away * used).sum(-1))
    totals = [torch.cat(parts, 1)]
    # A node's total is that of its children and of their means about its own: nothing is lost to cancellation.
    for mean, size in zip(means, sizes, strict=True):
        left, right = size[:, None, ::2], size[:, None, 1::2]
        gap = (mean[..., ::2, :] - mean[..., 1::2, :]).square().sum(-1)
        totals.append(pair_sums(totals[-1][..., None])[..., 0] + gap * left * right / (left + right))
    length = sizes[-1].sum(-1)[:, None, None]
    floor = (totals.pop() / length * 1e-6).clamp_min(torch.finfo(keys.dtype).tiny)
    return [torch.maximum(total / size[:, None], floor) for total, size in zip(totals, sizes, strict=True)]
