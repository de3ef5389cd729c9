"""`sortyard new`: a recipe of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from sortyard.cli.output import Output, verb
from sortyard.durable import aside_of, replace_bytes
from sortyard.errors import InputError


@verb
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.", show_default=False)],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as model.num_experts=16.", show_default=False),
    ] = None,
    source: Annotated[str, typer.Option("--from", help="A shipped recipe or a YAML file to start from.")] = "small",
    *,
    output: Output,
) -> None:
    """Write a commented recipe: every key with its meaning, range and default."""
    from sortyard.recipe import commented_recipe, load_recipe
    from sortyard.recipe.loading import name_of

    if file.exists():
        raise InputError(f"{file} exists and is left as it is; choose another name")
    if not file.parent.is_dir():
        raise InputError(f"{file}: the folder {file.parent} does not exist")
    overrides = [f"name={name_of(file)}", *(words or ())]
    loaded = load_recipe(source, overrides=overrides)
    try:
        replace_bytes(file, commented_recipe(loaded.recipe, base=source).encode())
    finally:
        aside_of(file).unlink(missing_ok=True)  # what a full disk left
    text = f"{file} written; edit it, then `sortyard config check {file}` and `sortyard pretrain {file} --dry-run`"
    output.result({"file": file, "from": source}, text=text)
