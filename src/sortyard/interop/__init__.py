"""Sortyard beside Hugging Face: dense checkpoints in, predictions of any sequence-classification folder out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sortyard.interop.exporting import export_program
    from sortyard.interop.onnx.program import export_onnx
    from sortyard.interop.predictor import Prediction, Predictor
    from sortyard.interop.upcycling import upcycle

_HOMES = {
    "Prediction": "sortyard.interop.predictor",
    "Predictor": "sortyard.interop.predictor",
    "export_onnx": "sortyard.interop.onnx.program",
    "export_program": "sortyard.interop.exporting",
    "upcycle": "sortyard.interop.upcycling",
}

__all__ = ["Prediction", "Predictor", "export_onnx", "export_program", "upcycle"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
