"""Sortyard beside Hugging Face: any sequence-classification folder in, predictions out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sortyard.interop.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sortyard.interop import predictor

    return getattr(predictor, name)
