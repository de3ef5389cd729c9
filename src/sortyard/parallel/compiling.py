"""Compiled training: each layer becomes a graph of its own, which layers of one kind share."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sortyard.errors import InputError
from sortyard.ops.bucket_attention.compiled.library import BuildError, find_compiler


def check_compiler(device: torch.device) -> None:
    """Look for what torch.compile needs besides torch.

    Args:
        device: where the model is to run.

    Raises:
        InputError: it is the processor, and there is no C++ compiler.
    """
    if device.type == "cpu":
        try:
            find_compiler()
        except BuildError as error:
            raise InputError(f"the model cannot be compiled: {error}") from error


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile make kernels for a model's layers, at their first step and at each new kind of shape.

    By layers, as they are compiled once whatever their number, and as activation checkpointing is around each of them.
    Bucket attention stays outside, between two graphs.

    Args:
        model: a model of transformers or of this library, or a part of one; it computes the same up to rounding.
    """
    for module in model.modules():
        _keep_out(module, True)
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def release_layers(model: nn.Module) -> None:
    """Undo `compile_layers`, so that hooks on a layer's parts are called again; does nothing to other models."""
    for module in model.modules():
        _keep_out(module, False)
        if isinstance(module, GradientCheckpointingLayer):
            module._compiled_call_impl = None


def _keep_out(module: nn.Module, stays: bool) -> None:
    """Tell a module that knows what to do about it whether it stays out of graphs."""
    tell = getattr(module, "stay_out_of_graphs", None)
    if tell is not None:
        tell(stays)
