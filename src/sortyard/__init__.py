"""Long-context language encoders that are sparse twice: bucket attention and routed experts.

Importing the package costs no torch: names load on first use, and the Auto classes of transformers learn of the model
when they are themselves imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sortyard._registration import register_auto_classes

if TYPE_CHECKING:
    from sortyard.interop.predictor import Predictor
    from sortyard.model.configuration import SortyardConfig
    from sortyard.model.heads import (
        SortyardForCausalLM,
        SortyardForMaskedLM,
        SortyardForQuestionAnswering,
        SortyardForSequenceClassification,
        SortyardForTokenClassification,
    )
    from sortyard.model.modeling import SortyardModel

__version__ = "0.1.0"

_HOMES = {
    "Predictor": "sortyard.interop.predictor",
    "SortyardConfig": "sortyard.model.configuration",
    "SortyardModel": "sortyard.model.modeling",
    "SortyardForCausalLM": "sortyard.model.heads",
    "SortyardForMaskedLM": "sortyard.model.heads",
    "SortyardForQuestionAnswering": "sortyard.model.heads",
    "SortyardForSequenceClassification": "sortyard.model.heads",
    "SortyardForTokenClassification": "sortyard.model.heads",
}

__all__ = [
    "Predictor",
    "SortyardConfig",
    "SortyardForCausalLM",
    "SortyardForMaskedLM",
    "SortyardForQuestionAnswering",
    "SortyardForSequenceClassification",
    "SortyardForTokenClassification",
    "SortyardModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_auto_classes()
