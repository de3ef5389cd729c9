"""Scoring a finished run's model again, on its own data or other."""

from pathlib import Path
from typing import Any

from sortyard.data.glue import Task
from sortyard.data.options import TaskOptions
from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.finetuning import outcome
from sortyard.jobs.folders import is_demo, model_folder, open_job
from sortyard.jobs.loading import known_labels
from sortyard.jobs.sections import finetune_section
from sortyard.recipe import Recipe
from sortyard.runs.folder import RunFolder


def evaluate_run(
    path: Path, *, task: str | None, data: str | None, batch_size: int, display: Display
) -> dict[str, Any]:
    """Scores a model; a run keeps the result in its `eval` folder.

    Args:
        path: A run, a demo, or a model's folder (then task and data are needed, and the model's own limit and problem
            type say how long its inputs are and whether a custom task is a regression).
        task: A GLUE task or custom; None takes the run's own.
        data: The examples, or for a pretrained model the text; None takes the run's own.
        batch_size: Sequences in one forward pass.
        display: Told what is being done.

    Returns:
        JSON values: the scores and what they were measured on.

    Raises:
        InputError: The folder, the task or the data cannot be used.
    """
    if is_demo(path):
        path = path / "finetune"
    folder = model_folder(path)
    run, recipe = None, None
    if (path / "job.json").is_file():
        run = RunFolder.open(path)
        job, recipe = open_job(run)
        if task is None and job.verb == "pretrain":
            return _language_model(run, recipe=recipe, data=data, batch_size=batch_size, display=display)
    options = _task_options(recipe, task=task, data=data, where=path)
    trained_at = options.max_length if recipe is not None and recipe.finetune is not None else None
    return _classifier(
        folder, run=run, options=options, max_length=trained_at, batch_size=batch_size, where=path, display=display
    )


def _task_options(recipe: Recipe | None, *, task: str | None, data: str | None, where: Path) -> TaskOptions:
    changes: dict[str, Any] = {} if task is None else {"name": task}
    if data is not None:  # a file is scored whole; in a folder the development split is
        changes |= {"data": data, "dev": data if Path(data).expanduser().is_file() else None}
    if recipe is not None and recipe.finetune is not None:
        return TaskOptions.model_validate(finetune_section(recipe).task.model_dump() | changes)
    if task is None or data is None:
        raise InputError(f"{where}: does not say what to score on: give --task and --data")
    return TaskOptions.model_validate(changes)


def _classifier(
    folder: Path,
    *,
    run: RunFolder | None,
    options: TaskOptions,
    max_length: int | None,
    batch_size: int,
    where: Path,
    display: Display,
) -> dict[str, Any]:
    from sortyard.data.tasks import load_examples
    from sortyard.evaluation.classification import evaluate_examples
    from sortyard.interop.predictor import Predictor

    predictor = Predictor.from_pretrained(folder)
    if predictor.problem == "regression":
        options = options.model_copy(update={"type": "regression"})
    names = known_labels(predictor.model.config)
    examples = load_examples(options, "dev", label_names=names)
    task = examples.task
    if task.num_labels != len(predictor.label_names):
        raise InputError(
            f"{where}: the model has {len(predictor.label_names)} outputs, the examples need {task.num_labels}; "
            "score it on the task that it was fine-tuned on"
        )
    columns = _columns(names, task=task, where=where)
    skipped = examples.skipped
    if skipped.total:
        display.say(f"skipped   {skipped.total} rows: {skipped.describe()}")
    display.say(f"examples  {len(examples):,} to score")
    limits = [limit for limit in (max_length, predictor.max_length) if limit is not None]
    result = evaluate_examples(
        predictor.model,
        tokenizer=predictor.tokenizer,
        examples=examples,
        batch_size=batch_size,
        max_length=min(limits, default=None),
        columns=columns,
    )
    file = result.write(run.eval, name=f"{task.name}-again") if run is not None else None
    return {"run": where, "file": file, **outcome(result), "skipped": skipped.total}


def _columns(names: tuple[str, ...], *, task: Task, where: Path) -> list[int] | None:
    """Finds the model's output for each of the task's classes; None where numbers, or nothing, are all their names.

    Raises:
        InputError: The model's classes are others than the task's.
    """
    if task.type == "regression" or all(name.isdecimal() for name in names):
        return None
    own, wanted = ([name.casefold() for name in each] for each in (names, task.label_names))
    if sorted(own) != sorted(wanted):
        raise InputError(
            f"{where}: the model's classes are {', '.join(names)}, those of {task.name} are "
            f"{', '.join(task.label_names)}; score it on its own task, or name its outputs so in id2label of its "
            "config.json"
        )
    return [own.index(name) for name in wanted]


def _language_model(
    run: RunFolder, *, recipe: Recipe, data: str | None, batch_size: int, display: Display
) -> dict[str, Any]:
    from sortyard.jobs.held_out import held_out_scores

    scores = held_out_scores(run, recipe=recipe, data=data, batch_size=batch_size, display=display)
    return {"run": run.path, "data": data if data is not None else "held-out rows", "evaluation": scores}
