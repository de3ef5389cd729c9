"""From a model to a file that onnxruntime runs without this library, and the run itself."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from sortyard.errors import InputError, first_line
from sortyard.evaluation.batching import position_limit
from sortyard.interop.exporting import export_program, largest_difference, output_names, worst_of
from sortyard.model.configuration import SortyardConfig

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_OPSET = 18  # the one that both torch's translations and ours are written in
_ANY_LENGTH = 1 << 16  # tokens, for models that name no limit
_BOTH_SIDES = 128  # tokens to compare at, if twice the crossover is less
_DRAWS = 5
_CHATTY = ("torch.onnx", "onnx_ir", "onnxscript")


def check_packages() -> None:
    """Refuse to start without the packages that an ONNX file is made and checked with.

    Raises:
        InputError: one of them is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the format onnx needs {', '.join(missing)}: run pip install {' '.join(missing)}")


def check_model(model: Any) -> None:
    """Refuse a model whose attention has no ONNX form.

    Args:
        model: a transformers model.

    Raises:
        InputError: its buckets are made by rounds or look back only; both hold at every length, short ones included.
    """
    config = model.config
    if not isinstance(config, SortyardConfig):
        return
    if "bucket" not in {config.attention_of(layer) for layer in range(config.num_hidden_layers)}:
        return
    instead = "export with --format torch, or train with attention: dense"
    if config.selection != "tree":
        raise InputError(
            f"selection is {config.selection!r}, but an ONNX file holds the buckets of 'tree' only; {instead}"
        )
    if config.causal:
        raise InputError(f"causal is true, but an ONNX file holds the buckets of bidirectional models only; {instead}")


def export_onnx(model: Any, path: Path) -> None:
    """Write a model's forward pass as an ONNX file.

    It takes `input_ids` and `attention_mask`, both [batch, length] of type int64, and gives the model's tensors by
    name, all in float32. Trees, experts and contexts are part of the graph.

    Args:
        model: a transformers model; it is put in evaluation mode and computes in float32 from here on.
        path: where the file goes; weights of more than 2 GB go into a file beside it.

    Raises:
        InputError: a package is missing, or the model has no ONNX form.
    """
    check_packages()
    check_model(model)
    model = model.float()
    program = export_program(model)
    try:
        write_program(
            program,
            path,
            longest=position_limit(model) or _ANY_LENGTH,
            outputs=output_names(model),
            axes={"input_ids": {0: "batch", 1: "length"}, "attention_mask": None},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(f"{type(model).__name__} cannot be written as ONNX: {reason}") from error


def write_program(
    program: ExportedProgram, path: Path, *, longest: int, outputs: list[str] | None = None, axes: Any = None
) -> None:
    """Write a traced program as an ONNX file.

    Args:
        program: the program.
        path: where the file goes.
        longest: tokens of the longest sequence.
        outputs: names of the outputs; left out, torch names them.
        axes: for each input the names of its dynamic axes, by their numbers.
    """
    import onnx_ir as ir

    from sortyard.interop.onnx.translations import local_functions, make_translations

    with _quiet():
        found = torch.onnx.export(
            program,
            custom_translation_table=make_translations(longest),
            opset_version=_OPSET,
            output_names=outputs,
            dynamic_shapes=axes,
            optimize=False,  # onnxruntime does it when it loads, and knows that shapes change within loops
            verbose=False,
        )
        assert found is not None
        found.model.functions.update({function.identifier(): function for function in local_functions()})
        ir.passes.common.RemoveUnusedFunctionsPass()(found.model)
        ir.passes.common.ClearMetadataAndDocStringPass()(found.model)  # traces of this machine's folders
        found.save(path)


def load_onnx(path: Path) -> Callable[..., dict[str, Tensor]]:
    """Open an ONNX file on the processor.

    Args:
        path: the file.

    Returns:
        A function of the inputs by name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the warnings are about what it could not make faster
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run


def onnx_difference(
    run: Callable[..., dict[str, Tensor]], model: Any, *, tolerance: float
) -> tuple[dict[str, float], int]:
    """Compare a file with its model on both sides of the crossover, again if a near tie may have fallen elsewhere.

    Which half of a branch a key is in, which branch is opened and which expert is chosen are discrete, and rounding
    decides near ties. A graph that is wrong is so whatever the tokens are.

    Args:
        run: what `load_onnx` gives.
        model: the model.
        tolerance: the difference that is rounding.

    Returns:
        The smallest of the largest differences found, by shape of the input, and the number of draws it took.
    """
    longest = max(_BOTH_SIDES, 2 * _dense_up_to(model))
    found = largest_difference(run, model, longest=longest)
    for seed in range(1, _DRAWS):
        if worst_of(found.values()) <= tolerance:
            return found, seed
        again = largest_difference(run, model, longest=longest, seed=seed)
        found = {shape: float(np.fmin(value, again[shape])) for shape, value in found.items()}
    return found, _DRAWS


def _dense_up_to(model: Any) -> int:
    config = model.config
    return config.options().to_spec().dense_up_to if isinstance(config, SortyardConfig) else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of themselves on the way; their errors still come through."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
