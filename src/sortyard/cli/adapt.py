"""`sortyard adapt`: an upcycled model settles on the user's text."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sortyard.cli.arguments import DryRun, OutFolder, RecipeAndOverrides, Seed, quoted, split_words
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.recipe import LoadedRecipe


@verb
def adapt(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a sortyard model's folder or hub name.", show_default=False)
    ],
    words: RecipeAndOverrides = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text: a file, folder, glob, prepared folder or hub name.", show_default=False),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="distil, masked_lm or both; left out, distil for an upcycled model, else masked_lm.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", help="dense (itself, with dense attention), or another model's folder.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Training time; 5 if left out.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps instead.", show_default=False)] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option("--sequence-length", help="Tokens of a row; the model's, at most 512.", show_default=False),
    ] = None,
    out: OutFolder = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Let a model whose attention or experts were swapped settle on text for a few minutes, without labels."""
    given = {
        "adapt.objective": None if objective is None else quoted(objective),
        "adapt.teacher": None if teacher is None else quoted(teacher),
        "adapt.data.sequence_length": sequence_length,
    }
    loaded = _load(words, data=data, given=given, length=_length(minutes=minutes, steps=steps), seed=seed)
    if dry_run:
        _dry_run(loaded, source=source, output=output)
        return
    from sortyard.jobs.adapting import start_adapting

    found = start_adapting(loaded, start=source, out=out, display=output.display())
    output.result(found, text=adapted_text(found))


def _length(*, minutes: float | None, steps: int | None) -> list[str]:
    """Writes how long to train as overrides; steps alone lift the recipe's limit of time."""
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"--minutes {minutes:g}: must be more than 0 and a number; --steps sets no time")
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: must be at least 1")
    words = [] if steps is None else [f"adapt.loop.steps={steps}"]
    if minutes is not None or steps is not None:
        words.append(f"adapt.loop.max_seconds={60 * minutes if minutes is not None else 0}")
    return words


def _load(
    words: list[str] | None, *, data: str | None, given: dict[str, Any], length: list[str], seed: int | None
) -> "LoadedRecipe":
    from sortyard.recipe import load_recipe

    recipe, overrides = split_words(words, seed=seed)
    if recipe is None and data is None and not any(word.startswith("adapt.data.path=") for word in overrides):
        raise InputError("--data: say which text to adapt to: a file, a folder, or a hub data set")
    overrides += [f"{name}={value}" for name, value in given.items() if value is not None] + length
    if data is not None:
        overrides += ["adapt.data.hub_config=null", f"adapt.data.path={quoted(data)}"]
    return load_recipe(recipe or "adapt", overrides=overrides)


def _dry_run(loaded: "LoadedRecipe", *, source: str, output: Output) -> None:
    from sortyard.cli.planning import show_plan
    from sortyard.jobs.adapting_start import find_model, model_shapes, settle
    from sortyard.jobs.plan import plan_adapting
    from sortyard.jobs.sections import adapt_section

    place = find_model(source)
    model = model_shapes(place)
    section = settle(adapt_section(loaded.recipe), place=place, model=model)
    recipe = loaded.recipe.model_copy(update={"adapt": section})
    show_plan([plan_adapting(recipe, start=model)], recipe=recipe, output=output)


def adapted_text(found: dict[str, Any]) -> str:
    """Writes what an adapting run came to: the held-out figures before and after, one a line."""
    sparse = "" if found["sparsity"] is None else f", {found['sparsity']:.0%} sparse"
    lines = [
        f"{found['run']}: {found['objective']}, {found['steps']:,} steps ({found['reason']}), "
        f"{found['seconds']:.0f} s; on held-out rows of {found['sequence_length']:,} tokens{sparse}:"
    ]
    for name, before in found["before"].items():
        lines.append(f"  {name.replace('_', ' '):<16} {before:.4g} -> {found['after'][name]:.4g}")
    lines += [f"note: {note}" for note in found["notes"]]
    length = found["sequence_length"]  # fine-tuning reads 128 tokens unless it is told to read more
    lines.append(
        f"next: sortyard finetune --task TASK --data FOLDER --from {found['run']} finetune.task.max_length={length}"
    )
    return "\n".join(lines)
