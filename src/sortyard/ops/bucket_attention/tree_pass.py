"""Tree attention with its own gradient: chunks go block by block, and nothing of a block is kept for the backward."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.node_means import add_shares, mean_nodes
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice
from sortyard.ops.bucket_attention.tree_columns import make_columns, make_window

# Chunks of all heads at a time: their keys, values and weights fit into a processor's cache.
_TILES_AT_A_TIME = 32


@dataclass(frozen=True)
class Block:
    """Some chunks of one sequence.

    Args:
        sequence: Number of the sequence in its group.
        queries: The places of their queries.
        keys: Row behind each exact column in a table of the sequence's keys, heads one after another.
        nodes: Row behind each summary in a table of the sequence's nodes, heads one after another.
        bias: What is added to a logit.
    """

    sequence: int
    queries: slice
    keys: Int[Tensor, "C H E"]
    nodes: Int[Tensor, "C H F"]
    bias: Float[Tensor, "C H c X"]

    def take(self, x: Float[Tensor, "S H n K"]) -> Float[Tensor, "C H c K"]:
        """The chunks' queries; zeros behind the last one."""
        C, _, c, _ = self.bias.shape
        rows = x[self.sequence, :, self.queries]
        missing = C * c - rows.shape[-2]
        rows = F.pad(rows, (0, 0, 0, missing)) if missing else rows
        return torch.unflatten(rows, 1, (C, c)).transpose(0, 1)

    def put(self, x: Float[Tensor, "S H n K"], tiles: Float[Tensor, "C H c K"]) -> None:
        """Write the chunks' rows."""
        rows = x[self.sequence, :, self.queries]
        rows.copy_(tiles.transpose(0, 1).flatten(1, 2)[:, : rows.shape[-2]])

    def gather(self, x: Float[Tensor, "S H n K"], means: Float[Tensor, "S H nodes K"]) -> Float[Tensor, "C H X K"]:
        """The rows behind all columns."""
        exact = _rows(x, self.sequence).index_select(0, self.keys.flatten()).view(*self.keys.shape, -1)
        summaries = _rows(means, self.sequence).index_select(0, self.nodes.flatten()).view(*self.nodes.shape, -1)
        return torch.cat([exact, summaries], -2)

    def scatter(
        self, tiles: Float[Tensor, "C H X K"], x: Float[Tensor, "S H n K"], means: Float[Tensor, "S H nodes K"]
    ) -> None:
        """Add the columns' rows to where they came from."""
        split = self.keys.shape[-1]
        _rows(x, self.sequence).index_add_(0, self.keys.flatten(), tiles[..., :split, :].flatten(0, 2))
        _rows(means, self.sequence).index_add_(0, self.nodes.flatten(), tiles[..., split:, :].flatten(0, 2))


class Scratch:
    """Memory that one block after another uses: new pages cost more than what is written into them."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A tensor of any content; the one that had the name before is lost."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)


def blocks(
    tree: TreeChoice,
    spec: BucketSpec,
    *,
    group: Group,
    heads: int,
    dtype: torch.dtype,
    scratch: Scratch,
    tiles: int,
) -> Iterator[Block]:
    """The chunks of every sequence of a group, a few at a time; the bias of the one before is lost.

    Args:
        tree: The group's tree and choice.
        spec: The attention's settings.
        group: The sequences.
        heads: Heads H.
        dtype: Type of the bias.
        scratch: Where the bias lies.
        tiles: About how many chunks of all heads go at a time.

    Yields:
        The blocks.
    """
    for sequence, length in enumerate(group.lengths):
        window = make_window(tree, spec, group=group, sequence=sequence)
        columns = make_columns(tree, window, sequence=sequence, dtype=dtype)
        step = max(1, tiles // heads)
        H, X = heads, columns.keys.shape[-1] + columns.nodes.shape[-1]
        for first in range(0, len(columns.keys), step):
            chunks = slice(first, min(len(columns.keys), first + step))
            queries = slice(first * spec.query_chunk, min(length, chunks.stop * spec.query_chunk))
            some = columns.some(chunks)
            bias = scratch.get("bias", len(some.keys), H, spec.query_chunk, X, like=columns.sizes)
            some.write_bias(bias, visible=window.visible(chunks))
            yield Block(sequence, queries, some.keys, some.nodes, bias)


class TreePass(torch.autograd.Function):
    """Attention of a group of sequences along a choice that is already made."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Float[Tensor, "S H n K"],
        k: Float[Tensor, "S H n K"],
        v: Float[Tensor, "S H n K"],
        key_means: Float[Tensor, "S H nodes K"],
        tree: TreeChoice,
        spec: BucketSpec,
        group: Group,
    ) -> Float[Tensor, "S H n K"]:
        """One output a query; zeros behind a sequence's end."""
        value_means = mean_nodes(v, tree.leaves, tree.sizes)
        ctx.save_for_backward(q, k, v, key_means, value_means)
        ctx.choice = (tree, spec, group)  # type: ignore[attr-defined]
        k, v = k.contiguous(), v.contiguous()
        out = q.new_empty(q.shape) if group.is_full else q.new_zeros(q.shape)
        scratch = Scratch()
        for block in _pass_blocks(ctx, key_means, scratch=scratch):
            weights = _weights(block, _tile(block, q, name="queries", scratch=scratch), k, key_means, scratch=scratch)
            values = _columns(block, v, value_means, name="columns", scratch=scratch)
            found = torch.bmm(
                weights, values, out=scratch.get("out", *weights.shape[:2], values.shape[-1], like=values)
            )
            block.put(out, found.view(*block.bias.shape[:3], -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values; columns and weights are made again."""
        with torch.autocast(grads[0].device.type, enabled=False):  # the caller's may be on here
            return *_differentiate(ctx, grads[0]), None, None, None, None


def _differentiate(ctx: FunctionCtx, grad: Float[Tensor, "S H n K"]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, key_means, value_means = ctx.saved_tensors  # type: ignore[attr-defined]
    tree, _, group = ctx.choice  # type: ignore[attr-defined]
    k, v, scale = k.contiguous(), v.contiguous(), q.shape[-1] ** -0.5
    dq = q.new_zeros(q.shape)
    dk, dv, dkm, dvm = (x.new_zeros(x.shape, dtype=key_means.dtype) for x in (k, v, key_means, value_means))
    scratch = Scratch()
    for block in _pass_blocks(ctx, key_means, scratch=scratch):
        queries = _tile(block, q, name="queries", scratch=scratch)
        weights = _weights(block, queries, k, key_means, scratch=scratch)
        up = _tile(block, grad, name="up", scratch=scratch)
        by_column = scratch.get("gradient", *block.bias.shape[:2], block.bias.shape[-1], q.shape[-1], like=up)
        torch.bmm(weights.transpose(1, 2), up, out=by_column.flatten(0, 1))
        block.scatter(by_column, dv, dvm)
        values = _columns(block, v, value_means, name="values", scratch=scratch)
        # The logits are no longer needed; their place takes their gradient.
        pull = torch.bmm(up, values.transpose(1, 2), out=block.bias.flatten(0, 1))
        share = torch.mul(pull, weights, out=scratch.get("share", *pull.shape, like=up)).sum(-1, keepdim=True)
        pull.sub_(share).mul_(weights).mul_(scale)
        torch.bmm(pull.transpose(1, 2), queries, out=by_column.flatten(0, 1))
        block.scatter(by_column, dk, dkm)
        # `_weights` left the keys in this place.
        keys = scratch.get("columns", *values.shape, like=values)
        block.put(dq, torch.bmm(pull, keys, out=up).view(*block.bias.shape[:3], -1))
    for total, means in ((dk, dkm), (dv, dvm)):
        add_shares(total, means, tree.leaves, tree.sizes, real=group.real)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _pass_blocks(ctx: FunctionCtx, key_means: Float[Tensor, "S H nodes K"], *, scratch: Scratch) -> Iterator[Block]:
    tree, spec, group = ctx.choice  # type: ignore[attr-defined]
    heads, dtype = key_means.shape[1], key_means.dtype
    return blocks(tree, spec, group=group, heads=heads, dtype=dtype, scratch=scratch, tiles=_TILES_AT_A_TIME)


def _weights(
    block: Block,
    queries: Float[Tensor, "tiles c K"],
    k: Float[Tensor, "S H n K"],
    key_means: Float[Tensor, "S H nodes K"],
    *,
    scratch: Scratch,
) -> Float[Tensor, "tiles c X"]:
    """Softmax weights; the bias turns into the logits."""
    keys = _columns(block, k, key_means, name="columns", scratch=scratch)
    logits = block.bias.flatten(0, 1)
    torch.baddbmm(logits, queries, keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5, out=logits)
    return torch.softmax(logits, -1, out=scratch.get("weights", *logits.shape, like=logits))


def _tile(block: Block, x: Float[Tensor, "S H n K"], *, name: str, scratch: Scratch) -> Float[Tensor, "tiles c K"]:
    rows = block.take(x)
    return scratch.get(name, *rows.shape, like=block.bias).copy_(rows).flatten(0, 1)


def _columns(
    block: Block, x: Float[Tensor, "S H n K"], means: Float[Tensor, "S H nodes K"], *, name: str, scratch: Scratch
) -> Float[Tensor, "tiles X K"]:
    """The rows behind all columns, in the bias's type."""
    C, H, E = block.keys.shape
    width, K = block.bias.shape[-1], x.shape[-1]
    out = scratch.get(name, C, H, width, K, like=block.bias)
    for table, index, part in ((x, block.keys, out[..., :E, :]), (means, block.nodes, out[..., E:, :])):
        rows = scratch.get(f"rows-{table.dtype}", index.numel(), K, like=table)
        torch.index_select(_rows(table, block.sequence), 0, index.flatten(), out=rows)
        part.copy_(rows.view(part.shape))
    return out.flatten(0, 1)


def _rows(x: Float[Tensor, "S H n K"], sequence: int) -> Float[Tensor, "rows K"]:
    return x[sequence].view(-1, x.shape[-1])
