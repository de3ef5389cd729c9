"""What each chunk of queries reads, and with which bias: [near leaves | window | global tokens | summaries]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice


@dataclass(frozen=True)
class Columns:
    """What some chunks of one sequence read; in a table the heads' rows lie one after another.

    Args:
        keys: Row behind each exact column in a table of keys.
        nodes: Row behind each summary in a table of nodes, leaves first.
        near_bias: What is added to a near leaf's logits: 0, or -inf at unused slots; None if all are used.
        owner: Which summary holds a key of the window or a global token; the number of summaries if none does.
        is_new: Which of these keys no near leaf holds.
        sizes: Keys that a summary's node holds; 0 where there is no node.
    """

    keys: Int[Tensor, "C H E"]
    nodes: Int[Tensor, "C H F"]
    near_bias: Float[Tensor, "C H near"] | None
    owner: Int[Tensor, "C H W"]
    is_new: Bool[Tensor, "C H W"]
    sizes: Float[Tensor, "C H F"]

    def some(self, chunks: slice) -> "Columns":
        """The columns of some of the chunks."""
        return Columns(
            self.keys[chunks],
            self.nodes[chunks],
            None if self.near_bias is None else self.near_bias[chunks],
            self.owner[chunks],
            self.is_new[chunks],
            self.sizes[chunks],
        )

    def write_bias(self, bias: Float[Tensor, "C H c X"], *, visible: Bool[Tensor, "C c W"]) -> None:
        """Write what is added to a logit: 0 for an exact key, log(count) for a summary, -inf for neither."""
        seen = visible.to(bias.dtype)
        C, c, W = seen.shape
        H, num_far = self.sizes.shape[1:]
        near = self.keys.shape[-1] - W
        bias[..., :near] = 0.0 if self.near_bias is None else self.near_bias[:, :, None]
        shown, new = _log_of(visible, bias.dtype), _log_of(self.is_new, bias.dtype)
        torch.add(shown[:, None], new[:, :, None], out=bias[..., near : near + W])
        # A summary counts its node's keys less those that the query reads exactly: a product with who holds whom.
        held = seen.new_zeros(C, W, H, num_far + 1).scatter_(-1, self.owner.transpose(1, 2)[..., None], 1.0)
        sizes = F.pad(self.sizes, (0, 1), value=W).flatten(1)[:, None]
        counts = torch.baddbmm(sizes.expand(-1, c, -1), seen, held.flatten(-2), alpha=-1)
        bias[..., near + W :] = counts.log_().view(C, c, H, num_far + 1)[..., :num_far].transpose(1, 2)


@dataclass(frozen=True)
class Window:
    """The keys that the chunks of one sequence read whatever they chose: around each chunk, and the global tokens.

    Args:
        chunk_starts: First query of each chunk.
        chunk: Queries of a chunk.
        length: Tokens of the sequence.
        half_width: Positions to each side of a query.
        margin: Positions before a chunk's first query that the window reaches.
        own_from: First position that a causal chunk reads exactly; None if not causal.
        globals_at: Positions of the global tokens, -1 at places without one.
    """

    chunk_starts: Int[Tensor, " C"]
    chunk: int
    length: int
    half_width: int
    margin: int
    own_from: Int[Tensor, " C"] | None
    globals_at: Int[Tensor, " g"]

    @property
    def end(self) -> int:
        """Where the window ends, counted from a chunk's first query."""
        return self.chunk + (self.half_width if self.own_from is None else 0)

    def positions(self) -> Int[Tensor, "C W"]:
        """The positions of each chunk's window, which may lie outside the sequence, and of the global tokens."""
        span = torch.arange(-self.margin, self.end, device=self.globals_at.device)
        window = self.chunk_starts[:, None] + span
        return torch.cat([window, self.globals_at.expand(len(window), -1)], -1)

    def visible(self, chunks: slice) -> Bool[Tensor, "N c W"]:
        """Which queries of some chunks read which position; a global token within the window counts there only."""
        starts = self.chunk_starts[chunks, None, None]
        device, own_from = starts.device, None if self.own_from is None else self.own_from[chunks, None, None]
        query = torch.arange(self.chunk, device=device)[:, None]
        key = torch.arange(-self.margin, self.end, device=device)
        if own_from is None:
            window = ((query - key).abs() <= self.half_width) & self._is_real(starts + key)
        else:
            near = (key <= query) & (key >= query - self.half_width)
            window = (near | ((key <= query) & (starts + key >= own_from))) & self._is_real(starts + key)
        marked, at = self.globals_at, starts + query
        if own_from is None:
            elsewhere = (at - marked).abs() > self.half_width
        else:
            elsewhere = (marked < at - self.half_width) & (marked < own_from)
        return torch.cat([window, elsewhere & self._is_real(marked)], -1)

    def _is_real(self, positions: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (positions >= 0) & (positions < self.length)


def make_window(tree: TreeChoice, spec: BucketSpec, *, group: Group, sequence: int) -> Window:
    """The window of one sequence of a group.

    Args:
        tree: The group's tree and choice.
        spec: The attention's settings.
        group: The sequences.
        sequence: Number of the sequence in the group.

    Returns:
        The window.
    """
    length = group.lengths[sequence]
    w = min(spec.local_window, length)
    margin = w if tree.own_from is None else max(w, tree.leaves.width - 1)
    chunks = -(-length // spec.query_chunk)
    own_from = None if tree.own_from is None else tree.own_from[:chunks]
    return Window(tree.chunk_starts[:chunks], spec.query_chunk, length, w, margin, own_from, group.globals_at[sequence])


def make_columns(tree: TreeChoice, window: Window, *, sequence: int, dtype: torch.dtype) -> Columns:
    """Lay the chosen leaves, the window, the global tokens and the summaries of one sequence side by side.

    Args:
        tree: The group's tree and choice.
        window: The sequence's window.
        sequence: Number of the sequence in the group.
        dtype: Type of the bias.

    Returns:
        The columns of all its chunks.
    """
    leaves, width, C = tree.leaves, tree.leaves.width, len(window.chunk_starts)
    order, slot_of = leaves.order[sequence], leaves.slot_of[sequence]  # [H, slots], [H, n]
    H, n = slot_of.shape
    head = torch.arange(H, device=order.device)[:, None]
    near = tree.choice.near[sequence, :, :C].transpose(0, 1)  # [C, H, near]
    num_leaves = tree.sizes[0].shape[-1]
    slots = near.clamp_max(max(0, num_leaves - 1))[..., None] * width + torch.arange(width, device=near.device)
    near_bias = None
    if leaves.used is not None or tree.own_from is not None:
        is_near = (near < num_leaves)[..., None].expand_as(slots)
        if leaves.used is not None:
            is_near = is_near & leaves.used[sequence][slots]
        near_bias = _log_of(is_near.flatten(-2), dtype)
    near_keys = order.flatten()[slots.flatten(-2) + head * order.shape[-1]] + head * n

    # Outside the sequence any of its keys will do: it is not visible.
    positions = window.positions().clamp(0, window.length - 1)[:, None] + head * n  # [C, H, W]
    leaf = slot_of.flatten()[positions] // width
    nodes, starts, sizes = _summaries(tree, sequence, chunks=C)
    border = None if window.own_from is None else window.own_from // width
    owner, is_new = _find_owner(leaf, starts, near, border=border)
    total = sum(size.shape[-1] for size in tree.sizes)
    keys = torch.cat([near_keys, positions], -1)
    return Columns(keys, nodes + head * total, near_bias, owner, is_new, sizes.to(dtype))


def _summaries(
    tree: TreeChoice, sequence: int, *, chunks: int
) -> tuple[Int[Tensor, "C H F"], Int[Tensor, "C H F"], Int[Tensor, "C H F"]]:
    """Row, first leaf and size of every summary that a chunk may use; size 0 where there is no node."""
    none = tree.choice.near[sequence, :, :chunks, :0].transpose(0, 1)
    rows, starts, sizes, first = [none], [none], [none], 0
    for height, (far, size) in enumerate(zip(tree.choice.far, tree.sizes, strict=True)):
        nodes = size.shape[-1]
        if far is not None:
            chosen = far[sequence, :, :chunks].transpose(0, 1)
            index = chosen.clamp_max(nodes - 1)
            rows.append(first + index)
            starts.append(chosen << height)
            sizes.append(size[sequence][index].masked_fill(chosen >= nodes, 0))
        first += nodes
    return torch.cat(rows, -1), torch.cat(starts, -1), torch.cat(sizes, -1)


def _find_owner(
    leaf: Int[Tensor, "C H W"],
    far_starts: Int[Tensor, "C H F"],
    near: Int[Tensor, "C H near"],
    *,
    border: Int[Tensor, " C"] | None,
) -> tuple[Int[Tensor, "C H W"], Bool[Tensor, "C H W"]]:
    """Which summary holds a leaf, and whether it is not near: all leaves a chunk sees are shared out."""
    num_far = far_starts.shape[-1]
    parts = [far_starts, near]
    if border is not None:
        parts.append(border[:, None, None].expand(*near.shape[:2], 1))
    starts, column = torch.cat(parts, -1).sort(dim=-1)
    held_by = column.gather(-1, torch.searchsorted(starts, leaf.contiguous(), right=True) - 1)
    is_near = (held_by >= num_far) & (held_by < num_far + near.shape[-1])
    return held_by.clamp_max(num_far), ~is_near


def _log_of(keep: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """0 where kept, -inf elsewhere; the logarithm itself is slow at 0."""
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, -torch.inf)
