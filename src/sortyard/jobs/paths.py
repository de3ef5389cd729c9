"""Local paths in a recipe made absolute, so that a run can be continued from any folder; and the data's fingerprint."""

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from sortyard.data.options import CorpusOptions
from sortyard.options import Options
from sortyard.recipe import Recipe

OptionsT = TypeVar("OptionsT", bound=Options)


def absolute(recipe: Recipe) -> Recipe:
    """Returns the recipe with every path that exists here, and every pattern of paths, written absolute."""
    changes: dict[str, Options] = {"tokenizer": _absolute(recipe.tokenizer, "path")}
    if recipe.pretrain is not None:
        data = _absolute(recipe.pretrain.data, "path")
        changes["pretrain"] = recipe.pretrain.model_copy(update={"data": data})
    if recipe.adapt is not None:
        section = recipe.adapt if recipe.adapt.teacher == "dense" else _absolute(recipe.adapt, "teacher")
        changes["adapt"] = section.model_copy(update={"data": _absolute(section.data, "path")})
    if recipe.finetune is not None:
        task = _absolute(recipe.finetune.task, "data", "dev", "test")
        changes["finetune"] = recipe.finetune.model_copy(update={"task": task})
    return recipe.model_copy(update=changes)


def _absolute(options: OptionsT, *names: str) -> OptionsT:
    changes = {}
    for name in names:
        value = getattr(options, name)
        if value is not None and (path := Path(value).expanduser()).exists():
            changes[name] = type(value)(path.resolve()) if isinstance(value, str) else path.resolve()
        elif isinstance(value, str) and glob.has_magic(value):
            changes[name] = str(Path(glob.escape(str(Path.cwd()))) / path)
    return options.model_copy(update=changes)


def fingerprint(sources: Iterable[str]) -> str:
    """Digests the files behind some sources; hub names count as themselves.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    from sortyard.data.prepare import source_sha256

    digests = "".join(source_sha256(CorpusOptions(path=source)) for source in sources)
    return hashlib.sha256(digests.encode()).hexdigest()[:16]
