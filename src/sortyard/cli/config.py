"""`sortyard config`: recipes checked and described."""

import json
from typing import Annotated

import typer

from sortyard.cli.arguments import RecipeAndOverrides, split_words
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

app = typer.Typer(help="Check a recipe, or print the JSON schema for an editor.", no_args_is_help=True)


@app.command("check")
@verb
def check(
    words: RecipeAndOverrides = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved recipe.")] = False,
    *,
    output: Output,
) -> None:
    """Check a recipe: every mistake at once, with its file and line."""
    from sortyard.recipe import load_recipe, resolved_yaml

    source, overrides = split_words(words)
    if source is None:
        raise InputError("which recipe? Give a YAML file or a name that `sortyard recipes` lists")
    loaded = load_recipe(source, overrides=overrides)
    resolved = loaded.recipe.model_dump(mode="json")
    text = resolved_yaml(loaded.recipe) if show else f"{loaded.source}: correct"
    output.result({"file": str(loaded.source), "valid": True, "recipe": resolved}, text=text)


@app.command("schema")
@verb
def schema(*, output: Output) -> None:
    """Print the JSON schema of a recipe, for an editor's completion."""
    from sortyard.recipe import json_schema

    found = json_schema()
    output.result(found, text=json.dumps(found, indent=2))
