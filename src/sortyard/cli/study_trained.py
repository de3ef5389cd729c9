"""`sortyard study twin` and `study ablation`: trainings side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sortyard.cli.arguments import RecipeAndOverrides, split_words
from sortyard.cli.bench_values import Out, show_result
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.studies.trained.study import TrainedPlan

DEFAULT_RECIPE, SEEDS, RUNS = "twin-laptop", 3, "runs"

Text = Annotated[
    str | None,
    typer.Option(
        "--data", help="Text, or a folder that `data prep` made; the recipe's if left out.", show_default=False
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=100, help="Runs of an arm.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=64, help="Runs at a time, one core each.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Fine-tune every run on this: a GLUE task or custom.", show_default=False)
]
TaskData = Annotated[
    str | None, typer.Option("--task-data", help="Folder or file of the task's examples.", show_default=False)
]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Folder of the runs; runs/twin or runs/ablation if left out.", show_default=False),
]


@verb
def twin(
    words: RecipeAndOverrides = None,
    data: Text = None,
    seeds: Seeds = SEEDS,
    jobs: Jobs = 2,
    task: TaskName = None,
    task_data: TaskData = None,
    work: Work = None,
    out: Out = None,
    *,
    output: Output,
) -> None:
    """A sparse recipe beside dense twins of equal active and of equal total parameters, at equal cost."""
    plan = _plan(words, data=data, seeds=seeds, jobs=jobs, task=task, task_data=task_data)
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.trained.twin import run_twin

    folder = result_folder(out)
    result, text = run_twin(plan, folder=folder, work=work or Path(RUNS) / "twin", say=output.say)
    show_result(result, text, folder=folder, output=output)


@verb
def ablation(
    words: RecipeAndOverrides = None,
    arms: Annotated[
        list[Path] | None,
        typer.Option(
            "--arms", help="A file that holds only what it changes, or a folder of them; the shipped ones if left out."
        ),
    ] = None,
    data: Text = None,
    seeds: Seeds = SEEDS,
    jobs: Jobs = 2,
    task: TaskName = None,
    task_data: TaskData = None,
    work: Work = None,
    out: Out = None,
    *,
    output: Output,
) -> None:
    """A recipe beside itself with one thing changed: what each part is worth, paired over seeds."""
    plan = _plan(words, data=data, seeds=seeds, jobs=jobs, task=task, task_data=task_data)
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.trained.ablation import run_ablation

    folder = result_folder(out)
    place = work or Path(RUNS) / "ablation"
    result, text = run_ablation(plan, places=arms or [], folder=folder, work=place, say=output.say)
    show_result(result, text, folder=folder, output=output)


def _plan(
    words: Sequence[str] | None, *, data: str | None, seeds: int, jobs: int, task: str | None, task_data: str | None
) -> "TrainedPlan":
    from sortyard.jobs.sections import pretrain_section
    from sortyard.recipe import load_recipe

    if (task is None) != (task_data is None):
        raise InputError("--task and --task-data: give both, the task and its examples, or neither")
    source, overrides = split_words(words)
    loaded = load_recipe(source or DEFAULT_RECIPE, overrides=overrides)
    section = pretrain_section(loaded.recipe)
    from sortyard.studies.trained.runs import Task
    from sortyard.studies.trained.study import TrainedPlan

    chosen = None if task is None or task_data is None else Task(task, str(Path(task_data).expanduser().resolve()))
    return TrainedPlan(loaded=loaded, data=data or str(section.data.path), seeds=seeds, jobs=jobs, task=chosen)
