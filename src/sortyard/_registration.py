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
LAYERS = "transformers.modeling_layers"  # loads the Auto classes before it has what our models need of it
# The models, and those of their parts that load transformers' Auto classes when they are imported.
_ON_THE_WAY = ("sortyard.model.heads", "sortyard.model.modeling", "sortyard.model.encoder", "sortyard.model.block")


def register_auto_classes() -> None:
    """Register now with the Auto modules that are loaded, and with the others as soon as they are."""
    if CONFIGURATION in sys.modules:
        _register(CONFIGURATION)
    if MODELING in sys.modules:
        _register(MODELING)
    if not {CONFIGURATION, MODELING, LAYERS} <= sys.modules.keys():
        sys.meta_path.insert(0, _AfterImport())


def _register(loaded: str) -> None:
    if loaded == CONFIGURATION:
        from sortyard.model.configuration import SortyardConfig

        sys.modules[loaded].AutoConfig.register(SortyardConfig.model_type, SortyardConfig, exist_ok=True)
        return
    half_imported = (
        name in sys.modules and getattr(sys.modules[name].__spec__, "_initializing", False)
        for name in (LAYERS, *_ON_THE_WAY)
        if name != loaded
    )
    if not any(half_imported):  # else they register at the end of what is being imported
        register_models()


def register_models() -> None:
    """Register every model with the Auto classes, if those are loaded.

    `sortyard.model.modeling` and `sortyard.model.heads` call it at their ends, as importing them may have loaded the
    Auto classes halfway through.
    """
    module = sys.modules.get(MODELING)
    if module is None:
        return
    from sortyard.model import heads

    if not hasattr(heads, "SortyardForQuestionAnswering"):  # it will call this when it is whole
        return
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


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders load a module of transformers, then registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in (CONFIGURATION, MODELING, LAYERS):
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
