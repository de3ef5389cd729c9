"""Makes `AutoModel` and its kin know the model, without importing torch or transformers for it."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

CONFIGURATION = "transformers.models.auto.configuration_auto"
MODELING = "transformers.models.auto.modeling_auto"
# What stands last in the modules that register the models at their own ends.
_LAST_NAMES = {
    "sortyard.model.modeling": "SortyardModel",
    "sortyard.model.heads": "SortyardForQuestionAnswering",
}


def register_auto_classes() -> None:
    """Register now with the Auto modules that are loaded, and with the others as soon as they are."""
    if CONFIGURATION in sys.modules:
        _register(CONFIGURATION)
    if MODELING in sys.modules:
        _register(MODELING)
    if not {CONFIGURATION, MODELING} <= sys.modules.keys():
        sys.meta_path.insert(0, _AfterImport())


def _register(auto_module: str) -> None:
    if auto_module == CONFIGURATION:
        from sortyard.model.configuration import SortyardConfig

        sys.modules[auto_module].AutoConfig.register(SortyardConfig.model_type, SortyardConfig, exist_ok=True)
        return
    register_models()


def register_models() -> None:
    """Register every model with the Auto classes, if those are loaded.

    Importing a part of the model may load the Auto classes halfway through; `sortyard.model.modeling` and
    `sortyard.model.heads` therefore call this again at their ends.
    """
    module = sys.modules.get(MODELING)
    if module is None or _is_model_half_imported():
        return
    from sortyard.model import heads
    from sortyard.model.configuration import SortyardConfig
    from sortyard.model.modeling import SortyardModel

    models = {
        "AutoModel": SortyardModel,
        "AutoModelForMaskedLM": heads.SortyardForMaskedLM,
        "AutoModelForCausalLM": heads.SortyardForCausalLM,
        "AutoModelForSequenceClassification": heads.SortyardForSequenceClassification,
        "AutoModelForTokenClassification": heads.SortyardForTokenClassification,
        "AutoModelForQuestionAnswering": heads.SortyardForQuestionAnswering,
    }
    for name, model in models.items():
        getattr(module, name).register(SortyardConfig, model, exist_ok=True)


def _is_model_half_imported() -> bool:
    for name, module in list(sys.modules.items()):
        if name in _LAST_NAMES:
            if not hasattr(module, _LAST_NAMES[name]):
                return True
        elif name.startswith("sortyard.model.") and getattr(module.__spec__, "_initializing", False):
            return True
    return False


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders load an Auto module, then registers with it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (CONFIGURATION, MODELING):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """The module's own loader, followed by the registration."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register(module.__name__)
