"""Activation checkpointing: which layers run again in the backward pass, and what of them is kept."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from sortyard.errors import InputError
from sortyard.parallel.options import ActivationCheckpointing

# Products of activations with weights. Those of activations with each other (bmm) are attention's scores where they are
# materialised, which are larger than all that they come from.
_PRODUCTS = {"aten::mm", "aten::addmm", "aten::_grouped_mm"}
_KEPT = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::sort",
    "aten::sort.stable",
    "aten::topk",
    "_c10d_functional::all_gather_into_tensor",
    "_c10d_functional::all_reduce",
    "_c10d_functional::all_to_all_single",
    "_c10d_functional::reduce_scatter_tensor",
    "sortyard::expert_mlp",
    "sortyard::tree_attention",
}


def checkpoint_activations(model: nn.Module, mode: ActivationCheckpointing, every: int = 1) -> None:
    """Let a model's layers drop their activations in training and compute them again in the backward pass.

    Gradients keep every bit, dropout's included. A layer is known by the number that ends its name, so that the stages
    of a pipeline choose the same layers as the whole model. A repeated call replaces the choice.

    Args:
        model: a model of transformers, of this library or of another; or a part of one.
        mode: "none" keeps everything. "full" keeps a layer's inputs only. "selective" keeps the results of matrix
            products with weights, attention, experts, sorts, top-k and functional collectives, and computes the
            element-wise rest again. It sees operators only: Triton kernels, attention of plain torch and attention
            that drops weights run again.
        every: of the layers, each so many-th is checkpointed, the first among them; at least 1.

    Raises:
        InputError: the model's layers cannot do this.
    """
    layers = _numbered_layers(model)
    if not layers:
        _enable_by_itself(model, mode=mode, every=every)
    selected = partial(create_selective_checkpoint_contexts, _policy)
    contexts: dict[str, Any] = {"context_fn": selected} if mode == "selective" else {}
    for number, layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **contexts)
        layer.gradient_checkpointing = mode != "none" and number % every == 0


def _numbered_layers(model: nn.Module) -> list[tuple[int, Any]]:
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    ends = [name.rpartition(".")[2] for name, _ in named]
    return [
        (int(end) if end.isdecimal() else place, layer)
        for place, (end, (_, layer)) in enumerate(zip(ends, named, strict=True))
    ]


def _enable_by_itself(model: Any, *, mode: ActivationCheckpointing, every: int) -> None:
    """Ask a model without transformers' layers for the one thing that it may be able to do."""
    if mode == "none":
        return
    # transformers 5.23 warns about the second name; drop it once every transformers we allow knows the first
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if mode == "full" and every == 1 and enable is not None:
        enable({"use_reentrant": False})
        return
    asked = f"activation_checkpointing {mode}" + (f" with activation_checkpointing_every {every}" if every > 1 else "")
    able = "none or full, every layer" if enable is not None else "none"
    raise InputError(
        f"{asked}: {type(model).__name__} has no layers of transformers' GradientCheckpointingLayer; it can do {able}"
    )


def _policy(_: object, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether an operator's result is kept.

    Where autograd is off, products are part of a choice or of a function that keeps what it needs itself. Operators
    that write into given memory have other names (aten::mm.out): to skip them would leave the memory as it is.
    """
    name = op.name()
    is_kept = name in _KEPT and not _drops(op, args, kwargs)
    if is_kept or (name in _PRODUCTS and torch.is_grad_enabled()):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _drops(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers: were it skipped, the operators behind it would draw others."""
    named = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    return bool(named.get("dropout_p", 0.0))
