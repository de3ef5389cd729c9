"""From a YAML file and the command line to a validated recipe, and back to YAML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sortyard.errors import InputError
from sortyard.recipe.checking import check
from sortyard.recipe.merging import merge, override_tree
from sortyard.recipe.sections import Recipe
from sortyard.recipe.shipped import find_recipe
from sortyard.recipe.yaml_tree import Tree, implicit_resolvers, leaves, parse_tree, read_tree

MAX_EXTENDS = 8


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe and where it came from."""

    recipe: Recipe
    source: Path
    overrides: tuple[str, ...]

    @property
    def as_given(self) -> str:
        """The file's own text, with the command line's overrides in a comment."""
        text = self.source.read_text(encoding="utf-8-sig")
        notes = "".join(f"# override: {word}\n" for word in self.overrides)
        return notes + text


def load_recipe(source: str | Path, *, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads a recipe, what it extends and the overrides, and validates the whole.

    Args:
        source: A YAML file or the name of a shipped recipe.
        overrides: Words like `model.num_experts=16`, which win over the file.

    Returns:
        The recipe with its origin.

    Raises:
        InputError: Something is wrong; every problem is in the message, one a line, with file and line.
    """
    path = find_recipe(source)
    tree = _with_bases(path, ())
    if "name" not in read_tree(path).value:
        tree = merge(tree, Tree({"name": name_of(path)}, {("name",): str(path)}))
    tree = merge(tree, override_tree(overrides))
    return LoadedRecipe(check(Recipe, tree), path, tuple(overrides))


def changed_recipe(recipe: Recipe, *, source: Path, changes: Path) -> Recipe:
    """Puts a file that holds only what it changes upon a recipe, and validates the whole.

    Args:
        recipe: What is changed.
        source: The recipe's file, for messages about values that the change makes unfit.
        changes: A YAML file with any part of a recipe.

    Returns:
        The changed recipe; its name becomes NAME-FILE.

    Raises:
        InputError: Something is wrong; every problem is in the message, one a line, with file and line; or the file
            changes nothing.
    """
    values = recipe.model_dump(mode="json")
    origins = {tuple(path): str(source) for path, _ in leaves(values)}
    own = read_tree(changes)
    changed = check(Recipe, merge(Tree(values, origins), own))
    if changed == recipe:
        raise InputError(f"{changes}: changes nothing of {source}; every value in it is what the recipe has")
    return changed.model_copy(update={"name": f"{recipe.name}-{name_of(changes)}"[:64]})


def parse_recipe(text: str, *, file: str) -> Recipe:
    """Reads a resolved recipe that is kept somewhere else than in a file of its own.

    Args:
        text: What `resolved_yaml` wrote.
        file: How messages name it.
    """
    return check(Recipe, parse_tree(text, file=file))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Returns every value of a recipe by its dotted key, as `model.num_experts`."""
    return {".".join(map(str, path)): value for path, value in leaves(recipe.model_dump(mode="json"))}


def name_of(path: Path) -> str:
    """Makes a run's name of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "run"


def _with_bases(path: Path, below: tuple[Path, ...]) -> Tree:
    tree = read_tree(path)
    if "extends" not in tree.value:
        return tree
    where = tree.origin(("extends",))
    base = tree.value["extends"]
    if not isinstance(base, str) or not base:
        raise InputError(f"{where}: extends: {base!r} is neither a file nor the name of a shipped recipe")
    try:
        found = find_recipe(path.parent / base if base.endswith((".yaml", ".yml")) else base)
    except InputError as error:
        raise InputError(f"{where}: extends: {error}") from None
    chain = (*below, path.resolve())
    if found.resolve() in chain or len(chain) > MAX_EXTENDS:
        names = " -> ".join(str(file) for file in (*chain, found))
        raise InputError(f"{where}: extends: goes round in a circle or too deep: {names}")
    own = {key: value for key, value in tree.value.items() if key != "extends"}
    return merge(_with_bases(found, chain), Tree(own, tree.origins))


class _RecipeDumper(yaml.SafeDumper):
    """Quotes every text that this library's reader, or a YAML 1.1 reader, would take for something else."""


_RecipeDumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + implicit_resolvers().get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *implicit_resolvers()}
}


def to_yaml(value: Any) -> str:
    """Writes plain values as YAML that `load_recipe` reads back as the same values."""
    return yaml.dump(value, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=120)


def resolved_yaml(recipe: Recipe) -> str:
    """Writes a recipe with every value, defaults included."""
    return to_yaml(recipe.model_dump(mode="json"))


def save_resolved(recipe: Recipe, *, path: Path) -> None:
    """Writes `resolved_yaml` into a file; the file is itself a recipe."""
    path.write_text(resolved_yaml(recipe), encoding="utf-8")


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    schema["title"] = "sortyard recipe"
    schema["required"] = [key for key in schema.get("required", []) if key != "name"]
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "a recipe this one changes: a .yaml file beside it, or the name of a shipped recipe",
    }
    return schema
