"""Data parallelism: processes share parameters, gradients and optimizer states (FSDP2), or hold them whole."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel.mesh import Layout
from sortyard.parallel.stage import Stage

# FSDP2 gathers a module's weights for the backward pass when gradients of what it returned arrive; below torch 2.13 it
# finds tensors in a router's result only if torch is told how to take it apart.
torch.export.register_dataclass(Routing)


def shard_stage(stage: Stage, layout: Layout) -> None:
    """Cut a stage's parameters over the processes that see different rows, block by block.

    Experts are cut over fewer processes than the rest where the others hold other experts. The loss is divided by the
    targets of all processes already, so gradients add up and are never averaged.
    """
    if layout.data.size() == 1:
        return
    dense = _mesh(layout.dense, "fsdp", layout)
    experts = _mesh(layout.experts, "dp_shard" if layout.options.ep > 1 else "fsdp", layout)
    # Torch would rather wrap nothing that returns views, since writing into one loses its hook; nothing here writes.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    keep = layout.options.pp > 1  # a pipeline comes by the same parameters again for every micro-batch
    model: Any = stage.model
    for block in model.base_model.encoder.layers:
        if layout.options.ep > 1 and block.is_routed:
            if any(True for _ in block.ffn.router.parameters()):
                fully_shard(block.ffn.router, mesh=dense, reshard_after_forward=not keep)
            fully_shard(block.ffn, mesh=experts, reshard_after_forward=not keep)
        fully_shard(block, mesh=dense, reshard_after_forward=not keep)
    fully_shard(stage, mesh=dense, reshard_after_forward=False)
    # FSDP2 brings tensors to the GPU; a micro-batch's number would have to come back from there.
    stage.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"micro": int(kwargs["micro"])}), prepend=True, with_kwargs=True
    )
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds


def set_reduction(stage: nn.Module, *, is_last: bool, layout: Layout) -> None:
    """Before a backward pass: whole copies wait for the last micro-batch with adding up; cut ones save the memory."""
    if isinstance(stage, FSDPModule) and layout.options.dp_shard * layout.options.ep == 1:
        stage.set_requires_gradient_sync(is_last)


def _mesh(grid: DeviceMesh, shard_dim: str, layout: Layout) -> DeviceMesh:
    return grid["dp_replicate", shard_dim] if layout.options.dp_replicate > 1 else grid[shard_dim]
