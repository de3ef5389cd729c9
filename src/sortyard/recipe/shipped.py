"""The recipes that come with the library, found by name."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import sortyard
from sortyard.errors import InputError
from sortyard.recipe.suggestions import near_word

_NOTE = re.compile(r"#\s*(command|hardware|time|score):\s*(.*)")


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the library and what its header says."""

    name: str
    path: Path
    summary: str
    notes: dict[str, str] = field(default_factory=dict)


def recipes_folder() -> Path:
    """Returns the folder of the shipped recipes: inside the installed package, or in the source checkout."""
    package = Path(sortyard.__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def _read_header(path: Path) -> ShippedRecipe:
    summary, notes, last = "", {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if match := _NOTE.match(line):
            last = match[1]
            notes[last] = match[2].strip()
        elif not last:
            summary = f"{summary} {line[1:].strip()}".strip()
        else:
            notes[last] = f"{notes[last]} {line[1:].strip()}".strip()
    return ShippedRecipe(path.stem, path, summary, notes)


def shipped_recipes() -> list[ShippedRecipe]:
    """Lists the shipped recipes in alphabetical order."""
    return [_read_header(path) for path in sorted(recipes_folder().glob("*.yaml"))]


def find_recipe(source: str | Path) -> Path:
    """Finds a recipe's file.

    Args:
        source: A YAML file's path, or the name of a shipped recipe. A file of that name wins.

    Returns:
        The path of an existing file.

    Raises:
        InputError: There is neither such a file nor such a shipped recipe.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(f"{source}: there is no such file{near_word(path, beside)}")
    shipped = recipes_folder() / f"{path.name}.yaml"
    if shipped.is_file():
        return shipped
    names = [recipe.name for recipe in shipped_recipes()]
    raise InputError(
        f"{source}: neither a file nor a shipped recipe (shipped are {', '.join(names)}){near_word(source, names)}"
    )
