"""Arguments and options that several verbs share, and how positional words are told apart."""

import json
import os.path
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sortyard.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

RecipeAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A YAML file or a shipped recipe's name, then settings such as model.num_experts=16.",
        show_default=False,
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run; must be new or empty.", show_default=False)
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the recipe's seed.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the resolved recipe; start nothing.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


def split_words(words: Sequence[str] | None, *, seed: int | None = None) -> tuple[str | None, list[str]]:
    """Tells the recipe from the overrides.

    Args:
        words: The positional words of the command line.
        seed: The value of --seed, which becomes an override.

    Returns:
        The recipe (None when there is none) and the overrides.

    Raises:
        InputError: More than one word is no `key=value`.
    """
    # os.path, because pathlib raises for a word too long to be a file name
    overrides = [word for word in words or () if "=" in word and not os.path.exists(word)]
    recipes = [word for word in words or () if word not in overrides]
    if len(recipes) > 1:
        raise InputError(f"expected one recipe, got {' and '.join(map(repr, recipes))}; settings are written key=value")
    if seed is not None:
        overrides.append(f"seed={seed}")
    return (recipes[0] if recipes else None), overrides


def named_paths(option: str, words: Sequence[str] | None) -> dict[str, str]:
    """Reads an option that is given several times as NAME=PATH.

    Args:
        option: The option, for the error.
        words: Its values.

    Returns:
        The paths by name.

    Raises:
        InputError: A word is no such pair, or a name is there twice.
    """
    found: dict[str, str] = {}
    for word in words or ():
        name, _, path = word.partition("=")
        if not path or not _NAME.fullmatch(name):
            raise InputError(f"{option} {word}: expected NAME=PATH, such as reviews=reviews.jsonl")
        if name in found:
            raise InputError(f"{option} {word}: the name {name} is there twice; call each source something else")
        found[name] = path
    return found


def quoted(text: str) -> str:
    """Quotes a text so that an override takes it as a text, whatever it looks like."""
    return json.dumps(text, ensure_ascii=False)
