"""`sortyard finetune`: a pretrained model to a task."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sortyard.cli.arguments import DryRun, OutFolder, RecipeAndOverrides, Seed, quoted, split_words
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.recipe import LoadedRecipe

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


@verb
def finetune(
    words: RecipeAndOverrides = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="A GLUE task, custom, or a file of labelled texts.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder or file of the examples; hub fetches GLUE.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="A run, a Hugging Face model's folder or hub name, or scratch.", show_default=False
        ),
    ] = None,
    out: OutFolder = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Fine-tune a model on a classification or regression task, and score it against simple baselines."""
    loaded = _load(words, task=task, data=data, seed=seed)
    if dry_run:
        _dry_run(loaded, start=start, output=output)
        return
    if start is None:
        raise InputError("--from: say what to start from: a run's folder, a Hugging Face model, or scratch")
    from sortyard.jobs.finetuning import start_finetuning

    found = start_finetuning(loaded, start=start, out=out, display=output.display())
    output.result(found, text=score_text(found))


def score_text(found: dict[str, object]) -> str:
    """Writes a task's score beside its baselines'."""
    metric, baselines = found["metric"], found["baselines"]
    assert isinstance(baselines, dict)
    beside = "".join(f", {name} {scores[metric]:.4f}" for name, scores in baselines.items())
    return f"{found['run']}: {found['task']} {metric} {found['score']:.4f}{beside}"


def _load(words: list[str] | None, *, task: str | None, data: str | None, seed: int | None) -> "LoadedRecipe":
    from sortyard.recipe import load_recipe
    from sortyard.recipe.suggestions import near_word

    source, overrides = split_words(words, seed=seed)
    if task is not None and task not in (*GLUE, "custom"):
        if not Path(task).is_file():
            raise InputError(
                f"--task {task}: neither a file nor one of {', '.join(GLUE)}, custom{near_word(task, GLUE)}"
            )
        if data is not None:
            raise InputError(f"--task {task} is a file of examples already; leave --data {data} out")
        task, data = "custom", task
    if task == "custom" and data is None and source is None:
        raise InputError("--task custom needs --data: a file or folder with the columns text and label")
    if source is None:
        if task is None:
            raise InputError("what to learn? Give --task, or a recipe with a section finetune")
        source = f"glue-{task}" if task in GLUE else "small"
    if task is not None:
        overrides.append(f"finetune.task.name={task}")
    if data is not None:  # other examples than the recipe's: a split of its own says nothing about them
        overrides = ["finetune.task.dev=null", "finetune.task.test=null", *overrides]
        overrides.append(f"finetune.task.data={quoted(data)}")
    return load_recipe(source, overrides=overrides)


def _dry_run(loaded: "LoadedRecipe", *, start: str | None, output: Output) -> None:
    from sortyard.cli.planning import show_plan
    from sortyard.jobs.loading import SCRATCH, find_start, start_shapes
    from sortyard.jobs.plan import plan_finetuning

    model = None if start in (None, SCRATCH) else start_shapes(find_start(str(start)))
    show_plan([plan_finetuning(loaded.recipe, start=model)], recipe=loaded.recipe, output=output)
