"""A model compiled once for batches of every shape."""

from typing import Any

import torch

from sortyard.parallel.compiling import check_compiler


def compile_model(model: Any) -> Any:
    """Wrap a model in `torch.compile` with sizes left open, so that batches of other shapes compile nothing new.

    A few graphs are made at most: a batch of one sequence has its own, and so has each side of a length at which the
    attention changes; past torch's limit (8 by default) shapes that no graph fits run uncompiled. A graph is compiled
    when it is first needed, which takes a minute or so.

    Args:
        model: a transformers model in evaluation mode; its weights are shared, not copied.

    Returns:
        A module that is called and asked for attributes as the model itself.

    Raises:
        InputError: the model is on the processor, and there is no C++ compiler.
    """
    check_compiler(model.device)
    return torch.compile(model, dynamic=True)
