"""Styles of tensor parallelism, for what transformers' own do not do; importing this module registers them.

A style is how the rule of a plan is carried out: how a weight is cut, and what is exchanged when its module runs. Each
process has a slice of the experts' inner width and the whole of router and context, which see the same on all
processes: so all route alike, and the gradients of what is not cut are whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel import EXPERTS, PACKED_BIAS


@runtime_checkable
class Mixing(Protocol):
    """A layer with experts, which runs them by `mix` once the router has chosen."""

    mix: Callable[[Tensor, Routing], Tensor]


class _Experts(TensorParallelLayer):
    """Each process has a slice of every expert's inner width; their outputs add up.

    transformers' "moe_tp_experts" does this for a module that holds nothing but experts. Here the router sits in the
    same module, and its gradient is whole already; so only `mix` is wrapped. Outward biases, which are not cut, count
    once. A dense layer under the same name is left alone.

    Source: decision 0010.
    """

    def should_use_local_tensors(self, module: nn.Module) -> bool:  # noqa: ARG002
        return True

    def install_forward(self, module: nn.Module, mesh: Any) -> nn.Module:
        if isinstance(module, Mixing):
            module.mix = partial(self._mix, module, module.mix, mesh)
        return module

    def _mix(
        self,
        layer: nn.Module,
        mix: Callable[[Tensor, Routing], Tensor],
        mesh: Any,
        tokens: Tensor,
        routing: Routing,
    ) -> Tensor:
        group = mesh.get_group()
        routing = replace(routing, weights=_whole_gradient(routing.weights, group))
        with self.context_around_forward(layer, mesh), _counted_once(layer, "down_proj_bias", group):
            part = mix(_whole_gradient(tokens, group), routing)
        mixed: Tensor = _Sum.apply(part, group)
        return mixed


class _PackedBias(TensorParallelLayer):
    """The bias of a gated dense layer: a slice of the gate's half beside the same slice of the values' half.

    transformers' "packed_colwise" cuts a matrix so, but a vector straight through.
    """

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        from torch.distributed.tensor import distribute_tensor
        from torch.distributed.tensor.placement_types import _StridedShard

        whole = module.get_parameter(param)
        cut = distribute_tensor(whole, mesh, [_StridedShard(dim=-1, split_factor=2)], src_data_rank=None)
        module.register_parameter(param, nn.Parameter(cut, requires_grad=whole.requires_grad))


class _Sum(torch.autograd.Function):
    """The sum over processes; every process has the gradient of the sum already."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:  # noqa: ARG004
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class _WholeGradient(torch.autograd.Function):
    """A value that all processes have, where each goes on with a slice: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _whole_gradient(value: Tensor, group: Any) -> Tensor:
    whole: Tensor = _WholeGradient.apply(value, group)
    return whole


@contextmanager
def _counted_once(module: nn.Module, name: str, group: Any) -> Iterator[None]:
    """Make a parameter zero on all processes but the first, whose gradient they all get."""
    parameter = module._parameters.get(name)
    if parameter is None:
        yield
        return
    module._parameters[name] = _whole_gradient(parameter, group) * float(dist.get_rank(group) == 0)  # type: ignore[assignment]
    try:
        yield
    finally:
        module._parameters[name] = parameter


ALL_PARALLEL_STYLES.register(EXPERTS, _Experts())
ALL_PARALLEL_STYLES.register(PACKED_BIAS, _PackedBias())
