"""Puts settings on top of others: a recipe on the one it extends, the command line on the recipe."""

from collections.abc import Sequence
from typing import Any

from sortyard.recipe.problems import OVERRIDE, KeyPath, Problem, raise_problems
from sortyard.recipe.yaml_tree import Tree, parse_scalar

# Of these, one says what the other would: whoever sets one above means the other below to be forgotten.
_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"}


def merge(base: Tree, top: Tree) -> Tree:
    """Lays one tree over another: sections are merged key by key, every other value is replaced.

    Args:
        base: The settings below.
        top: The settings that win.

    Returns:
        A new tree whose origins tell for every key which of the two set it.
    """
    origins = dict(base.origins)
    value = _merge_values(base.value, top.value, (), origins, top)
    origins.update(top.origins)
    return Tree(value, origins)


def _merge_values(
    below: dict[str, Any], above: dict[str, Any], path: KeyPath, origins: dict[KeyPath, str], top: Tree
) -> dict[str, Any]:
    merged = dict(below)
    for key in above:
        if (other := _ALTERNATIVES.get(key)) and other not in above:
            merged.pop(other, None)
    for key, value in above.items():
        here = (*path, key)
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge_values(old, value, here, origins, top)
            continue
        for known in [known for known in origins if known[: len(here)] == here]:
            del origins[known]
        merged[key] = value
    return merged


def override_tree(overrides: Sequence[str]) -> Tree:
    """Reads `model.num_experts=16`-like words of the command line into a tree.

    Args:
        overrides: The words; a later one wins over an earlier one.

    Returns:
        The tree, whose origins name the word itself.

    Raises:
        InputError: A word is no `key=value`; the message holds every such word.
    """
    value: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    for word in overrides:
        where = f"{OVERRIDE}{word}"
        key, sign, text = word.partition("=")
        path = tuple(key.split("."))
        if not sign or not all(part.isidentifier() for part in path):
            problems.append(Problem(where, (), "must look like section.key=value, for example model.num_experts=16"))
            continue
        try:
            _set(value, path, parse_scalar(text))
        except ValueError as error:
            problems.append(Problem(where, path, str(error)))
            continue
        for length in range(1, len(path) + 1):
            origins[path[:length]] = where
    raise_problems(problems)
    return Tree(value, origins)


def _set(value: dict[str, Any], path: Sequence[str], leaf: Any) -> None:
    for part in path[:-1]:
        child = value.setdefault(part, {})
        if not isinstance(child, dict):
            raise ValueError(f"{part} was set to {child!r} by an earlier override and has no keys")
        value = child
    value[path[-1]] = leaf
