"""The model's tensors: for checkpoints by name, and as the finished model's folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.durable import sync
from sortyard.errors import InputError
from sortyard.training.pieces import Piece


def model_tensors(model: nn.Module) -> list[Piece]:
    """Parameters and persistent buffers, whole and where they are; tied parameters once, under their first name."""
    return [Piece.all_of(name, tensor) for name, tensor in _named_tensors(model).items()]


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into a model of the same shape.

    Raises:
        InputError: names, shapes or types differ.
    """
    own = _named_tensors(model)
    check_fits(*({name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (own, tensors)))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def check_fits(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Args:
        wanted: what the model's tensors are like, by name.
        there: likewise the checkpoint's.

    Raises:
        InputError: they differ.
    """
    differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if differing:
        raise InputError(
            f"the checkpoint does not fit the model: {len(differing)} tensors differ, the first is {differing[0]}; "
            "resume with the recipe that the run was started with"
        )


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    persistent = model.state_dict(keep_vars=True).keys() - aliases
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def has_weights(folder: Path) -> bool:
    """Whether a model's folder holds weights, in one file or in several."""
    return any(folder.glob("model*.safetensors"))


def export_model(model: Any, folder: Path) -> None:
    """Save a model the transformers way, file by file aside and renamed; other files in the folder stay.

    Args:
        model: has transformers' save_pretrained.
        folder: created where missing.
    """
    aside = folder / ".aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    for path in sorted(aside.iterdir()):
        sync(path)
        path.replace(folder / path.name)
    aside.rmdir()
    sync(folder)
