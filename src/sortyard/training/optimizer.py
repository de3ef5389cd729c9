"""AdamW over the model's parameters, and its state by parameter name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.training.options import OptimizerOptions
from sortyard.training.pieces import Piece


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters by whether weight decay applies.

    Decay keeps the scale of a matrix in check. It is withheld from biases and normalisations, where it has no such
    meaning, and from embeddings, whose rare rows would shrink at every step but grow only when their token comes up.
    The rule goes by name as well as by shape, because stacked expert biases are matrices too.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and not name.endswith("bias") and id(parameter) not in embeddings
        (decayed if is_matrix else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW in torch's fused form, which runs on CPU and CUDA."""
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=options.weight_decay),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Piece]:
    """The optimizer's state as whole tensors named "<quantity>/<parameter>", such as "exp_avg/encoder.weight"."""
    return [
        Piece.all_of(f"{quantity}/{name}", value)
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    ]


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back a checkpoint's tensors, named as by `optimizer_tensors`, for the same model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        optimizer.state[parameters[name]][quantity] = value.to(parameters[name].device)
