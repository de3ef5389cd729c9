"""Exchanges between processes that gradients flow through; each is named after what it does forward.

A process that goes on with a slice of the work has a part of the gradient, one that repeats the work has all of it:
every function below says which of the two it expects, as mixing them up is silent in the forward pass.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    Group: TypeAlias = dist.ProcessGroup
else:
    Group = Any  # torch may be built without distribution, and models import this module


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:  # noqa: ARG004
        return _summed(part, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _CutTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _own_tokens(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_tokens(gradient, ctx.group), None


class _JoinTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group, is_partial: bool) -> Tensor:
        ctx.group, ctx.is_partial = group, is_partial
        return _all_tokens(value, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cut = _added_tokens if ctx.is_partial else _own_tokens
        return cut(gradient, ctx.group), None, None


class _AddUpTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _added_tokens(part, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_tokens(gradient, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, send: list[int], receive: list[int]) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return _exchanged(rows, group, send, receive)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(gradient, ctx.group, ctx.receive, ctx.send), None, None, None


def add_up(part: Tensor, group: Group) -> Tensor:
    """The sum over processes, which all go on with in the same way: each has the whole gradient already."""
    total: Tensor = _AddUp.apply(part, group)
    return total


def hand_out(value: Tensor, group: Group) -> Tensor:
    """A value that all processes have, before each goes on with a slice of the work: gradients add up."""
    same: Tensor = _HandOut.apply(value, group)
    return same


def cut_tokens(value: Tensor, group: Group) -> Tensor:
    """This process's part of the tokens of a value [B, T, ...] that all have."""
    part: Tensor = _CutTokens.apply(value, group)
    return part


def join_tokens(part: Tensor, group: Group) -> Tensor:
    """All tokens [B, T, ...], with which all processes go on in the same way."""
    value: Tensor = _JoinTokens.apply(part, group, False)
    return value


def hand_out_tokens(part: Tensor, group: Group) -> Tensor:
    """All tokens [B, T, ...], before each process goes on with a slice of the work: gradients add up."""
    value: Tensor = _JoinTokens.apply(part, group, True)
    return value


def add_up_tokens(part: Tensor, group: Group) -> Tensor:
    """This process's tokens of the sum over processes of [B, T, ...]."""
    total: Tensor = _AddUpTokens.apply(part, group)
    return total


def exchange(rows: Tensor, group: Group, *, send: list[int], receive: list[int]) -> Tensor:
    """Send each process its rows of [R, D], and receive those that are for this one.

    Args:
        rows: rows in the order of the processes they go to.
        group: the processes.
        send: how many go to each.
        receive: how many come from each.
    """
    received: Tensor = _Exchange.apply(rows, group, send, receive)
    return received


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
