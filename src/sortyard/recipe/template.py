"""A recipe written out with every key, its meaning, range and default."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from sortyard.recipe.fields import default_of, is_required, range_text, section_class, type_text
from sortyard.recipe.loading import to_yaml
from sortyard.recipe.sections import Recipe

WIDTH = 118


def commented_recipe(recipe: Recipe, *, base: str) -> str:
    """Writes a recipe as YAML with a comment above every key.

    Args:
        recipe: The values to write.
        base: The recipe they came from, for the header.

    Returns:
        YAML text that loads as the same recipe.
    """
    head = [
        f"# {recipe.name}: started from the recipe '{base}'; every key is here, so delete what you do not change.",
        f"# command:  sortyard pretrain {recipe.name}.yaml",
        "# hardware: not measured yet",
        "# time:     not measured yet",
        "# score:    not measured yet",
    ]
    return "\n".join([*head, *_section(recipe, indent=0)]) + "\n"


def _section(options: BaseModel, *, indent: int) -> Iterator[str]:
    pad = " " * indent
    for name, info in type(options).model_fields.items():
        value = getattr(options, name)
        if section_class(info.annotation) is not None:
            yield from ([""] if indent == 0 else [])
            yield from _comment(info.description or "", pad)
            if value is None:
                yield f"{pad}{name}: null"
            else:
                yield f"{pad}{name}:"
                yield from _section(value, indent=indent + 2)
            continue
        kind = range_text(info) or type_text(info)
        default = "must be given" if is_required(info) else f"default {_inline(default_of(info))}"
        yield from _comment(f"{info.description} ({kind}; {default})", pad)
        yield f"{pad}{name}: {_inline(options.model_dump(mode='json')[name])}"


def _comment(text: str, pad: str) -> Iterator[str]:
    line = f"{pad}#"
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH:
            yield line
            line = f"{pad}#"
        line += f" {word}"
    yield line


def _inline(value: Any) -> str:
    """Writes a value on one line: a scalar, or a list in brackets."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return to_yaml({"x": value})[len("x:") :].strip()
