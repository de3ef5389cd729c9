"""YAML read with the line of every key, so that a mistake can be pointed at."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sortyard.errors import InputError
from sortyard.recipe.problems import KeyPath, Problem, raise_problems

MAX_FILE_BYTES = 1 << 18
MAX_NODES = 20_000
MAX_DEPTH = 32


@dataclass(frozen=True)
class Tree:
    """A nested mapping of settings and, for every key in it, the place that set it."""

    value: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Names the place of a key, or of its nearest parent that is written down."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "recipe"


class _RecipeLoader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's scalars: `3e-4` is a float, `no` and `on` are words, `1:30` is no number."""


_RecipeLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""))
        case "float":
            plain = text.replace("_", "").lower()
            return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
        case other:
            raise ValueError(f"the YAML tag {node.tag if other == node.tag else '!!' + other} is not allowed here")


def implicit_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Returns which texts this reader takes for something other than text, by first character."""
    return dict(_RecipeLoader.yaml_implicit_resolvers)


class _Walk:
    """Turns a node tree into plain values, noting lines and collecting problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.origins: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def place(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise InputError(
                f"{self.place(node)}: the file is too large or too deep for a recipe "
                f"(at most {MAX_NODES} values, {MAX_DEPTH} levels, aliases counted where they are used)"
            )
        self.origins.setdefault(path, self.place(node))
        if isinstance(node, yaml.MappingNode):
            return dict(self.items(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        try:
            value = _scalar(node)
        except ValueError as error:
            self.problems.append(Problem(self.place(node), path, str(error)))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append(Problem(self.place(node), path, f"{node.value} is not a finite number"))
            return None
        return value

    def items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        first: dict[str, str] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or not key:
                self.problems.append(Problem(self.place(key_node), path, "a key must be a plain word"))
            elif key in first:
                text = f"duplicate key; it is already set at {first[key]}"
                self.problems.append(Problem(self.place(key_node), (*path, key), text))
            else:
                first[key] = self.place(key_node)
                self.origins[(*path, key)] = first[key]
                yield key, self.value(value_node, (*path, key))


def _read_text(path: Path, file: str) -> str:
    if path.is_dir():
        raise InputError(f"{file}: is a folder; give a recipe's YAML file")
    if path.exists() and not path.is_file():  # a pipe can be read only once, a device without end
        raise InputError(f"{file}: is no regular file; save the recipe in one and give that")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{file}: {size} bytes is too large for a recipe (at most {MAX_FILE_BYTES})")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}:{line}: is not UTF-8 text; a recipe is a UTF-8 YAML file") from error


def _syntax_error(error: yaml.YAMLError, file: str, text: str) -> InputError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        words = error.problem or "cannot be read as YAML"
        lines = text.splitlines()
        if line <= len(lines) and "\t" in lines[line - 1]:
            words = "a tab is not allowed here; indent with spaces"
        elif "single document" in (error.context or ""):
            words = "a recipe is one document; remove the '---' line"
        return InputError(f"{file}:{line}: {words}")
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return InputError(f"{file}:{line}: the character {error.character!r} is not allowed in YAML")
    return InputError(f"{file}: {error}")


def parse_tree(text: str, *, file: str) -> Tree:
    """Reads one YAML mapping, with every duplicate or unusable key reported at once.

    Args:
        text: The YAML document.
        file: How messages name it.

    Returns:
        The plain values and, for every key path, its `file:line`.

    Raises:
        InputError: The text is no YAML mapping; the message holds every problem found, one a line.
    """
    try:
        node = yaml.compose(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(error, file, text) from error
    except RecursionError as error:
        raise InputError(f"{file}: is nested too deeply for a recipe") from error
    if node is None:
        raise InputError(f"{file}:1: is empty; start one with `sortyard new {file} --from small`")
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
        raise InputError(f"{file}:{node.start_mark.line + 1}: must be a mapping of `key: value` lines, not a {kind}")
    walk = _Walk(file)
    value = walk.value(node, ())
    raise_problems(walk.problems)
    return Tree(value, walk.origins)


def read_tree(path: Path) -> Tree:
    """Reads a YAML file; see `parse_tree`.

    Raises:
        InputError: The file is missing, unreadable, too large, or no YAML mapping.
    """
    file = str(path)
    return parse_tree(_read_text(path, file), file=file)


def parse_scalar(text: str) -> Any:
    """Reads the value of a command-line override: a YAML scalar or a flow list such as `[0.9, 0.98]`.

    Raises:
        ValueError: The text is no YAML value.
    """
    try:
        node = yaml.compose(text, Loader=_RecipeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text!r} is no YAML value") from error
    if node is None:
        return None
    walk = _Walk("override")
    value = walk.value(node, ())
    if walk.problems:
        raise ValueError(walk.problems[0].text)
    return value


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yields every value that is no mapping, with its key path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    else:
        yield path, value
