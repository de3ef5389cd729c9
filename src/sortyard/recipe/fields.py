"""Every key a recipe may hold: its type, range, default and meaning, read from the options classes."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_BOUNDS = ("gt", "ge", "lt", "le")


@dataclass(frozen=True)
class Key:
    """One key of the recipe."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def section(self) -> type[BaseModel] | None:
        """The options class below this key, where the key is a section."""
        return section_class(self.info.annotation)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def section_class(annotation: Any) -> type[BaseModel] | None:
    """Returns the options class among an annotation's alternatives, if there is one."""
    for part in _alternatives(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def walk_keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yields every key of a nested options class, sections before what they hold."""
    for name, info in model.model_fields.items():
        key = Key((*path, name), info)
        yield key
        if key.section is not None:
            yield from walk_keys(key.section, key.path)


def _metadata(info: FieldInfo) -> Iterator[Any]:
    yield from info.metadata
    for part in _alternatives(info.annotation):
        for extra in getattr(part, "__metadata__", ()):
            yield from getattr(extra, "metadata", (extra,))


def range_text(info: FieldInfo) -> str | None:
    """Writes a number's allowed range as `0 <= x <= 1`, or None where there is no bound."""
    bounds: dict[str, Any] = {}
    for item in _metadata(info):
        for name in _BOUNDS:
            value = getattr(item, name, None)
            if isinstance(value, (int, float)):
                bounds[name] = value
    low = next((f"{_number(bounds[n])} {s} " for n, s in (("gt", "<"), ("ge", "<=")) if n in bounds), "")
    high = next((f" {s} {_number(bounds[n])}" for n, s in (("lt", "<"), ("le", "<=")) if n in bounds), "")
    return f"{low}x{high}" if bounds else None


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def choices(annotation: Any) -> tuple[Any, ...]:
    """Returns the allowed words of a Literal annotation (optional or not), else an empty tuple."""
    found: list[Any] = []
    for part in _alternatives(annotation):
        if get_origin(part) is Literal:
            found += get_args(part)
    return tuple(found)


def type_text(info: FieldInfo) -> str:
    """Names the values a key takes in words: `an integer`, `one of a, b`, `a number or null`."""
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    words: list[str] = []
    for part in _alternatives(info.annotation):
        if get_origin(part) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(part))))
        elif get_origin(part) in (tuple, list):
            words.append("a list")
        else:
            words.append(names.get(part, "a text" if part is not None else "null"))
    return " or ".join(dict.fromkeys(words))


def takes_bool(info: FieldInfo) -> bool:
    """Says whether `true` may be a value of this key (pydantic alone would read it as the number 1).

    A choice of words is never read so, and knows itself which switches of earlier recipes it stands for.
    """
    return any(part is bool or part is Any for part in _alternatives(info.annotation)) or bool(choices(info.annotation))


def default_of(info: FieldInfo) -> Any:
    """Returns a key's default, or PydanticUndefined where it must be given."""
    if info.default_factory is not None:
        return info.default_factory()  # type: ignore[call-arg]
    return info.default


def is_required(info: FieldInfo) -> bool:
    """Says whether a key has no default."""
    return default_of(info) is PydanticUndefined
