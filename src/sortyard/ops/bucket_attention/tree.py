"""Tree attention: per chunk one small dense attention over [near leaves | window | global tokens | summaries]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.gather_rows import gather_rows
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice, choose_by_tree, mean_nodes


@dataclass(frozen=True)
class Columns:
    """What each chunk of queries reads, and with which bias.

    Args:
        rows: Row of the table [slots | nodes, leaves first] behind each column.
        bias: What is added to a logit: 0 for an exact key, log(count) for a summary, -inf for neither.
    """

    rows: Int[Tensor, "S H C X"]
    bias: Float[Tensor, "S H C c X"]


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
    tree = choose_by_tree(q.detach().to(wide), k.detach().to(wide), spec, group=group, causal=causal)
    columns = make_columns(tree, spec, group=group, causal=causal, dtype=wide)
    K, n, chunk = q.shape[-1], q.shape[-2], spec.query_chunk
    table = _key_value_table(torch.cat([k, v], -1), tree)
    keys, values = torch.split(gather_rows(table, columns.rows), K, dim=-1)  # [S, H, C, X, K]
    queries = torch.unflatten(F.pad(q, (0, 0, 0, -n % chunk)), -2, (-1, chunk))  # [S, H, C, c, K]
    out = F.scaled_dot_product_attention(
        queries.flatten(0, 1),
        keys.flatten(0, 1),
        values.flatten(0, 1),
        attn_mask=columns.bias.flatten(0, 1).to(q.dtype),
        dropout_p=dropout_p,
    )
    return out.view(*q.shape[:2], -1, K)[..., :n, :]


def _key_value_table(pairs: Float[Tensor, "S H n D"], tree: TreeChoice) -> Float[Tensor, "S H rows D"]:
    """Keys and values of all slots, followed by their means over all nodes."""
    leaves = tree.leaves
    if tree.own_from is None:
        slots = gather_rows(pairs, leaves.order)
        if leaves.used is not None:
            slots = slots * leaves.used[:, None, :, None]
    else:
        slots = F.pad(pairs, (0, 0, 0, leaves.order.shape[-1] - pairs.shape[-2]))
    means = mean_nodes(slots, tree.sizes, width=leaves.width)
    return torch.cat([slots, *(mean.to(slots.dtype) for mean in means)], -2)


@torch.no_grad()
def make_columns(tree: TreeChoice, spec: BucketSpec, *, group: Group, causal: bool, dtype: torch.dtype) -> Columns:
    """Lay the chosen leaves, the window, the global tokens and the summaries side by side."""
    near, leaves = tree.choice.near, tree.leaves
    S, H, C, _ = near.shape
    num_leaves = tree.sizes[0].shape[-1]
    near_slots = near.clamp_max(num_leaves - 1)[..., None] * leaves.width + torch.arange(
        leaves.width, device=near.device
    )
    is_near = (near < num_leaves)[..., None].expand_as(near_slots)
    if leaves.used is not None:
        used = leaves.used[:, None].expand(S, H, -1)
        is_near = is_near & used.gather(-1, near_slots.flatten(2)).view_as(near_slots)
    near_slots, is_near = near_slots.flatten(-2), is_near.flatten(-2)

    positions, visible = _window_and_globals(tree, spec, group=group, causal=causal)  # [S, C, E], [S, C, c, E]
    E = positions.shape[-1]
    at = positions.clamp(0, group.length - 1).flatten(1)[:, None].expand(S, H, -1)
    window_slots = leaves.slot_of.gather(-1, at).view(S, H, C, E)
    leaf = window_slots // leaves.width
    is_new = (leaf[..., None, :] != near[..., :, None]).all(-2)  # [S, H, C, E]

    rows, heights, sizes = _summaries(tree)
    counts = sizes[..., None, :].to(dtype)
    if rows.shape[-1]:
        nodes = torch.cat([far for far in tree.choice.far if far is not None], -1)
        inside = ((leaf[..., :, None] >> heights) == nodes[..., None, :]).to(dtype)  # [S, H, C, E, F]
        counts = counts - _per_chunk_product(visible.to(dtype), inside)
    bias = torch.cat(
        [
            _log_mask(is_near, dtype)[..., None, :].expand(-1, -1, -1, spec.query_chunk, -1),
            _log_mask(visible[:, None] & is_new[..., None, :], dtype),
            counts.clamp_min(0).log().expand(-1, -1, -1, spec.query_chunk, -1),
        ],
        -1,
    )
    if not group.is_full or group.length % spec.query_chunk:
        place = tree.chunk_starts[:, None] + torch.arange(spec.query_chunk, device=near.device)
        # A row of nothing but -inf has no softmax; what pads see is dropped afterwards.
        bias = bias.masked_fill((place >= tree.lengths[:, None, None])[:, None, :, :, None], 0.0)
    return Columns(torch.cat([near_slots, window_slots, rows], -1), bias)


def _window_and_globals(
    tree: TreeChoice, spec: BucketSpec, *, group: Group, causal: bool
) -> tuple[Int[Tensor, "S C E"], Bool[Tensor, "S C c E"]]:
    """Positions that a chunk reads whatever it chose, and which of its queries count them there."""
    starts, w, device = tree.chunk_starts, spec.local_window, tree.chunk_starts.device
    shape_width = tree.leaves.width
    left = max(w, shape_width - 1) if causal else w
    span = torch.arange(-left, spec.query_chunk + (0 if causal else w), device=device)
    window = starts[:, None] + span  # [C, E]
    query = (starts[:, None] + torch.arange(spec.query_chunk, device=device))[..., None]  # [C, c, 1]
    key = window[:, None]
    in_window = _in_window(query, key, tree.own_from, w=w)
    real = (key >= 0) & (key < tree.lengths[:, None, None, None])  # [S, C, 1, E]
    marked = group.globals_at[:, None, None]  # [S, 1, 1, g]
    in_globals = (marked >= 0) & ~_in_window(query, marked, tree.own_from, w=w)
    if causal:
        in_globals = in_globals & (marked <= query)
    S, C, g = len(tree.lengths), len(starts), marked.shape[-1]
    positions = torch.cat([window.expand(S, -1, -1), marked[:, 0].expand(S, C, g)], -1)
    visible = torch.cat([in_window & real, in_globals], -1)
    return positions, visible


def _in_window(
    query: Int[Tensor, "*#shape"], key: Int[Tensor, "*#shape"], own_from: Int[Tensor, " C"] | None, *, w: int
) -> Bool[Tensor, "*#shape"]:
    if own_from is None:
        return (query - key).abs() <= w
    return (key <= query) & ((key >= query - w) | (key >= own_from[:, None, None]))


def _summaries(
    tree: TreeChoice,
) -> tuple[Int[Tensor, "S H C F"], Int[Tensor, " F"], Int[Tensor, "S H C F"]]:
    """Table row, height and size of every summary a chunk may use; size 0 where there is no node."""
    near = tree.choice.near
    S, H = near.shape[:2]
    first = tree.leaves.order.shape[-1]
    rows, sizes, heights = [near[..., :0]], [near[..., :0]], []
    for height, (far, size) in enumerate(zip(tree.choice.far, tree.sizes, strict=True)):
        nodes = size.shape[-1]
        if far is not None:
            index = far.clamp_max(nodes - 1)
            rows.append(first + index)
            held = size[:, None].expand(S, H, nodes).gather(-1, index.flatten(-2)).view_as(index)
            sizes.append(held.masked_fill(far >= nodes, 0))
            heights += [height] * far.shape[-1]
        first += nodes
    return torch.cat(rows, -1), torch.tensor(heights, device=near.device, dtype=torch.long), torch.cat(sizes, -1)


def _per_chunk_product(visible: Float[Tensor, "S C c E"], inside: Float[Tensor, "S H C E F"]) -> Tensor:
    """Sum over the window, with the heads beside each other so that the window's matrix is not copied a head."""
    S, H, C, E, F_ = inside.shape
    merged = inside.permute(0, 2, 3, 1, 4).reshape(S, C, E, H * F_)
    return (visible @ merged).view(S, C, -1, H, F_).permute(0, 3, 1, 2, 4)


def _log_mask(keep: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, -torch.inf)
