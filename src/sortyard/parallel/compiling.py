"""Compiled training: each layer becomes a graph of its own, which layers of one kind share."""

import inspect
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sortyard.errors import InputError
from sortyard.ops.bucket_attention.compiled.library import BuildError, find_compiler

# Layers with experts and without, in training and not, batches of one row and of more: each is a graph of its own.
_GRAPHS = 64


def check_compiler(device: torch.device) -> None:
    """Look for what torch.compile needs besides torch.

    Args:
        device: where the model is to run.

    Raises:
        InputError: it is the processor and there is no C++ compiler, or a GPU and there is no Triton.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        raise InputError("the model cannot be compiled: Triton is not installed; install it, or go without compiling")
    if device.type == "cpu":
        try:
            find_compiler()
        except BuildError as error:
            raise InputError(f"the model cannot be compiled: {error}") from error


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile make kernels for a model's layers, at their first step and at each new kind of shape.

    By layers, as they are compiled once whatever their number. Activation checkpointing goes around each of them, in
    whichever order the two are asked for. Bucket attention stays outside, between two graphs.

    Args:
        model: a model of transformers or of this library, or a part of one; it computes the same up to rounding.

    Raises:
        InputError: the model has no layers that are known as such.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"loop.compile is true, but {type(model).__name__} has no layers of transformers' "
            "GradientCheckpointingLayer to compile; set it to false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for layer in layers:
        layer.__class__ = _compiled_class(type(layer))  # type: ignore[arg-type]
    _keep_out(model, stays=True)


def release_layers(model: nn.Module) -> None:
    """Undo `compile_layers`, so that hooks on a layer's parts are called again; does nothing to other models."""
    for module in model.modules():
        eager = vars(type(module)).get("_eager_class")
        if eager is not None:
            module.__class__ = eager
    _keep_out(model, stays=False)


@lru_cache
def _compiled_class(layer_class: Any) -> Any:
    """A subclass that differs in a compiled forward pass, as FSDP2 makes them."""
    # What transformers puts around it for checkpointing it puts around the subclass's, too.
    compiled = torch.compile(inspect.unwrap(layer_class.forward))

    @wraps(layer_class.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return compiled(self, *args, **kwargs)

    del forward.__wrapped__
    body = {"forward": forward, "_eager_class": layer_class, "__module__": layer_class.__module__}
    return type(f"Compiled{layer_class.__name__}", (layer_class,), body)


def _keep_out(model: nn.Module, *, stays: bool) -> None:
    """Tell the modules that know what to do about it whether they stay out of graphs."""
    for module in model.modules():
        if hasattr(module, "is_between_graphs"):
            module.is_between_graphs = stays  # type: ignore[assignment]
