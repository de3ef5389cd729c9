"""Exchanges between processes that gradients flow through; each is named after what it does forward.

A process that goes on with a slice of the work has a part of the gradient, one that repeats the work has all of it:
every function below says which of the two it expects, as mixing them up is silent in the forward pass.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    Group: TypeAlias = dist.ProcessGroup
else:
    Group = Any  # torch may be built without distribution, and models import this module


def _summed(part: Tensor, group: Group) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _own_tokens(value: Tensor, group: Group) -> Tensor:
    return value.chunk(group.size(), dim=1)[group.rank()].contiguous()


def _all_tokens(part: Tensor, group: Group) -> Tensor:
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=1)


def _added_tokens(part: Tensor, group: Group) -> Tensor:
    parts = [chunk.contiguous() for chunk in part.chunk(group.size(), dim=1)]
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(own, parts, group=group)
    return own


def _exchanged(rows: Tensor, group: Group, send: list[int], receive: list[int]) -> Tensor:
    received = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
    return received


def _pair(there: Callable[..., Tensor], back: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of a tensor and constants whose gradient takes the way of another function of the same constants."""

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor, *constants: Any) -> Tensor:
            ctx.constants = constants
            return there(value, *constants)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return back(gradient, *ctx.constants), *[None] * len(ctx.constants)

    return Pair.apply


_add_up = _pair(_summed, lambda gradient, _: gradient)
_hand_out = _pair(lambda value, _: value.view_as(value), _summed)
_cut_tokens = _pair(_own_tokens, _all_tokens)
_join_tokens = _pair(_all_tokens, _own_tokens)
_hand_out_tokens = _pair(_all_tokens, _added_tokens)
_add_up_tokens = _pair(_added_tokens, _all_tokens)
_exchange = _pair(_exchanged, lambda gradient, group, send, receive: _exchanged(gradient, group, receive, send))


def add_up(part: Tensor, group: Group) -> Tensor:
    """The sum over processes, which all go on with in the same way: each has the whole gradient already."""
    return _add_up(part, group)


def hand_out(value: Tensor, group: Group) -> Tensor:
    """A value that all processes have, before each goes on with a slice of the work: gradients add up."""
    return _hand_out(value, group)


def cut_tokens(value: Tensor, group: Group) -> Tensor:
    """This process's part of the tokens of a value [B, T, ...] that all have."""
    return _cut_tokens(value, group)


def join_tokens(part: Tensor, group: Group) -> Tensor:
    """All tokens [B, T, ...], with which all processes go on in the same way."""
    return _join_tokens(part, group)


def hand_out_tokens(part: Tensor, group: Group) -> Tensor:
    """All tokens [B, T, ...], before each process goes on with a slice of the work: gradients add up."""
    return _hand_out_tokens(part, group)


def add_up_tokens(part: Tensor, group: Group) -> Tensor:
    """This process's tokens of the sum over processes of [B, T, ...]."""
    return _add_up_tokens(part, group)


def exchange(rows: Tensor, group: Group, *, send: list[int], receive: list[int]) -> Tensor:
    """Send each process its rows of [R, D], and receive those that are for this one.

    Args:
        rows: rows in the order of the processes they go to.
        group: the processes.
        send: how many go to each.
        receive: how many come from each.
    """
    return _exchange(rows, group, send, receive)
