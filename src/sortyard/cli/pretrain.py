"""`sortyard pretrain`: text to a pretrained model."""

from typing import Annotated

import typer

from sortyard.cli.arguments import DryRun, OutFolder, RecipeAndOverrides, Seed, quoted, split_words
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError


@verb
def pretrain(
    words: RecipeAndOverrides = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text: a file, folder, glob, prepared folder or hub name.", show_default=False),
    ] = None,
    out: OutFolder = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Pretrain an encoder on text by masked (or causal) language modelling."""
    from sortyard.recipe import load_recipe

    source, overrides = split_words(words, seed=seed)
    if source is None and data is None:
        raise InputError("which recipe? Give a YAML file, a name that `sortyard recipes` lists, or --data TEXT")
    if data is not None:
        overrides += [f"pretrain.data.path={quoted(data)}", "pretrain.data.hub_config=null"]
    loaded = load_recipe(source or "small", overrides=overrides)
    if dry_run:
        from sortyard.cli.planning import show_plan
        from sortyard.jobs.plan import plan_pretraining

        show_plan([plan_pretraining(loaded.recipe)], recipe=loaded.recipe, output=output)
        return
    from sortyard.jobs.pretraining import start_pretraining

    found = start_pretraining(loaded, out=out, display=output.display())
    scores = ", ".join(f"{name} {value:.4g}" for name, value in found["evaluation"].items())
    output.result(found, text=f"{found['run']}: {found['steps']:,} steps ({found['reason']}); {scores}")
