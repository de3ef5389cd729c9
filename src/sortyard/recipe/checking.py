"""Builds options from plain values and reports every mistake at once, each at its place."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sortyard.recipe.fields import choices, range_text, takes_bool, type_text, walk_keys
from sortyard.recipe.problems import KeyPath, Problem, dotted, raise_problems
from sortyard.recipe.suggestions import did_you_mean, near_word
from sortyard.recipe.yaml_tree import Tree, leaves

ModelT = TypeVar("ModelT", bound=BaseModel)
KeyTable = Mapping[tuple[str, ...], FieldInfo]

_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_LENGTH_ERRORS = {"string_too_short", "string_too_long", "too_short", "too_long", "string_pattern_mismatch"}


def check(model: type[ModelT], tree: Tree) -> ModelT:
    """Validates a tree against an options class.

    Args:
        model: The options class of the whole tree.
        tree: Plain values with the place of each.

    Returns:
        The validated options.

    Raises:
        InputError: Something is wrong; the message holds every problem, one a line, in the order of the places.
    """
    table: KeyTable = {key.path: key.info for key in walk_keys(model)}
    problems = list(_misread_booleans(tree, table))
    try:
        options = model.model_validate(tree.value)
    except ValidationError as error:
        problems += [_explain(detail, tree, table) for detail in error.errors(include_url=False)]
    if problems:
        raise_problems(sorted(_distinct(problems), key=lambda problem: _place_order(problem.where)))
    return options


def _misread_booleans(tree: Tree, table: KeyTable) -> Iterator[Problem]:
    for path, value in leaves(tree.value):
        info = table.get(tuple(str(part) for part in path))
        if isinstance(value, bool) and info is not None and not takes_bool(info):
            yield Problem(tree.origin(path), path, f"{str(value).lower()} is not {type_text(info)}")


def _distinct(problems: Sequence[Problem]) -> list[Problem]:
    # A field with alternatives (a number or null) is reported by pydantic once for each of them.
    first: dict[tuple[str, KeyPath], Problem] = {}
    for problem in problems:
        first.setdefault((problem.where, problem.path), problem)
    return list(first.values())


def _place_order(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (where, 0)


def _known_path(loc: tuple[int | str, ...], table: KeyTable) -> tuple[str, ...]:
    """Cuts an error's location back to the key it belongs to (pydantic adds list indices and union members)."""
    path = tuple(str(part) for part in loc)
    while path and path not in table:
        path = path[:-1]
    return path


def _explain(detail: ErrorDetails, tree: Tree, table: KeyTable) -> Problem:
    loc, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        typed = tuple(str(part) for part in loc)
        return Problem(tree.origin(loc), typed, f"unknown key{did_you_mean(typed, list(table))}")
    path = _known_path(loc, table)
    if kind == "missing":
        typed = tuple(str(part) for part in loc)
        hint = f" ({table[path].description})" if path == typed and table[path].description else ""
        return Problem(tree.origin(loc[:-1]), typed, f"must be given{hint}")
    if kind in ("value_error", "assertion_error"):
        text = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Problem(_place_of_words(text, path, tree), path, text)
    return Problem(tree.origin(path), path, _value_text(detail, path, table))


def _place_of_words(text: str, path: tuple[str, ...], tree: Tree) -> str:
    """Points a check across several keys at the first key it names that somebody wrote down."""
    for words in re.findall(r"[A-Za-z_][\w.]*", text):
        if (named := (*path, *words.rstrip(".").split("."))) in tree.origins:
            return tree.origins[named]
    return tree.origin(path)


def _value_text(detail: ErrorDetails, path: tuple[str, ...], table: KeyTable) -> str:
    given = detail["input"]
    shown = "null" if given is None else repr(given) if isinstance(given, str) else f"{given}"
    if len(shown) > 60:
        shown = shown[:57] + "..."
    info = table.get(path)
    if info is None:
        return f"{shown} is not usable: {detail['msg']}"
    kind = detail["type"]
    if kind in _RANGE_ERRORS and (bounds := range_text(info)):
        return f"{shown} is out of range ({bounds})"
    if words := choices(info.annotation):
        return f"{shown} is not {type_text(info)}{near_word(given, words)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{shown} is no section; write its keys indented below {dotted(path)}:"
    if kind in _LENGTH_ERRORS:
        return f"{shown} is not allowed: {detail['msg']}"
    return f"{shown} is not {type_text(info)}" + (f" ({bounds})" if (bounds := range_text(info)) else "")
