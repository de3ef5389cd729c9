"""Styles of tensor parallelism, for what transformers' own do not do; importing this module registers them.

A style is how the rule of a plan is carried out: how a weight is cut, and what is exchanged when its module runs. Each
process has a slice of the experts' inner width and the whole of router and context, which see the same on all
processes: so all route alike, and the gradients of what is not cut are whole.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel import EXPERTS, PACKED_BIAS
from sortyard.parallel.experts import SharedExperts
from sortyard.parallel.tensor import Mix, mix_slices


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
        if isinstance(module, SharedExperts):
            module.mix = partial(self._mix, module, module.mix, mesh)
        return module

    def _mix(
        self,
        layer: nn.Module,
        mix: Mix,
        mesh: Any,
        tokens: Tensor,
        routing: Routing,
    ) -> Tensor:
        with self.context_around_forward(layer, mesh):
            return mix_slices(layer, mix, mesh.get_group(), tokens, routing)


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


ALL_PARALLEL_STYLES.register(EXPERTS, _Experts())
ALL_PARALLEL_STYLES.register(PACKED_BIAS, _PackedBias())
