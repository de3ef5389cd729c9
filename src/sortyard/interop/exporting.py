"""A model as a graph that runs without its Python: torch.export, at any batch size and length."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sortyard.errors import InputError, first_line
from sortyard.evaluation.batching import position_limit

_LONGEST = 2048  # tokens of a row to compare at


class _Fields(nn.Module):
    """A model's tensors by name, for the two inputs that every encoder has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def export_program(model: Any) -> ExportedProgram:
    """Trace a model's forward pass.

    The program takes `input_ids` and `attention_mask` by name, both [B, T] of type int64, and returns the model's
    tensors by name (`logits`, or `last_hidden_state` of an encoder). Attention and experts stay operators of this
    library, which is therefore imported where the program runs: buckets follow the data, and no fixed graph holds them.

    Args:
        model: a transformers model; it is put in evaluation mode.

    Returns:
        The program, for any batch size, and any length that the model takes.

    Raises:
        InputError: the model cannot be traced.
    """
    inputs = _example(model, batch_size=2, length=min(16, _longest(model)))
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
    try:
        with torch.no_grad():
            return torch.export.export(_Fields(model.eval()), (), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # what a model's code makes the tracer raise is of any kind
        raise InputError(f"{type(model).__name__} cannot be exported: {first_line(error)}") from error


def output_names(model: Any) -> list[str]:
    """Names of the tensors that a model's program returns.

    Args:
        model: a transformers model.

    Returns:
        The names, in order.
    """
    with torch.no_grad():
        return list(_Fields(model)(**_example(model, batch_size=1, length=1)))


def largest_difference(
    run: Callable[..., Mapping[str, Tensor]], model: Any, *, longest: int = _LONGEST, seed: int = 0
) -> dict[str, float]:
    """Run a program and its model on random tokens, padded, short and as long as the model takes.

    Args:
        run: the program, a function of the inputs by name.
        model: the model it was made of.
        longest: tokens of a row, at most.
        seed: seed of the tokens.

    Returns:
        The largest difference in any output, pads left out, by shape of the input.
    """
    limit = min(longest, _longest(model))
    shapes = sorted({(1, min(3, limit)), (3, min(40, limit)), (2, limit)}, key=lambda shape: shape[1])
    fields = _Fields(model.eval())
    found = {}
    for batch_size, length in shapes:
        inputs = _example(model, batch_size=batch_size, length=length, seed=seed)
        with torch.no_grad():
            mine, truth = run(**inputs), fields(**inputs)
        real = inputs["attention_mask"].bool()
        differences = [_largest(mine[name] - truth[name], real=real) for name in truth]
        found[f"{batch_size}x{length}"] = worst_of(differences)
    return found


def worst_of(differences: Iterable[float]) -> float:
    """The largest difference; NaN if one is NaN, which `max` may pass over."""
    return float(np.max(list(differences)))


def _largest(difference: Tensor, *, real: Tensor) -> float:
    """What a model makes of pads is its own affair: with a window, they may have nothing to read."""
    by_token = difference.shape[:2] == real.shape
    return float((difference[real] if by_token else difference).abs().max())


def _longest(model: Any) -> int:
    return min(_LONGEST, position_limit(model) or _LONGEST)


def _example(model: Any, *, batch_size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, int(model.config.vocab_size), (batch_size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, max(1, length - length // 4) :] = 0
    return {"input_ids": ids, "attention_mask": mask}
