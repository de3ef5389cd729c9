"""Compiled training: each layer becomes a graph of its own, which layers of one kind share."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sortyard.model.attention.bucket import BucketCore


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile make kernels for a model's layers, at their first step and at each new kind of shape.

    By layers, as they are compiled once whatever their number, and as activation checkpointing is around each of them.
    Bucket attention stays outside, between two graphs.

    Args:
        model: a model of transformers or of this library, or a part of one; it computes the same up to rounding.
    """
    for module in model.modules():
        if isinstance(module, BucketCore):
            module.stay_out_of_graphs(True)
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def release_layers(model: nn.Module) -> None:
    """Undo `compile_layers`, so that hooks on a layer's parts are called again; does nothing to other models."""
    for module in model.modules():
        if isinstance(module, BucketCore):
            module.stay_out_of_graphs(False)
        if isinstance(module, GradientCheckpointingLayer):
            module._compiled_call_impl = None
