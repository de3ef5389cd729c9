"""Scoring a finished run's model again, on its own data or other."""

from pathlib import Path
from typing import Any

from sortyard.data.options import TaskOptions
from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.finetuning import outcome, section_of
from sortyard.jobs.folders import is_demo, model_folder, open_job
from sortyard.recipe import Recipe
from sortyard.training.run_folder import RunFolder


def evaluate_run(
    path: Path, *, task: str | None, data: str | None, batch_size: int, display: Display
) -> dict[str, Any]:
    """Scores a model; a run keeps the result in its `eval` folder.

    Args:
        path: A run, a demo, or a model's folder (then task and data are needed).
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
    run = RunFolder(path) if (path / "job.json").is_file() else None
    job, recipe = open_job(run) if run is not None else (None, None)
    if task is None and run is not None and recipe is not None and job is not None and job.verb == "pretrain":
        return _language_model(run, recipe=recipe, data=data, batch_size=batch_size, display=display)
    options = _task_options(recipe, task=task, data=data, where=path)
    return _classifier(folder, run=run, options=options, batch_size=batch_size, where=path, display=display)


def _task_options(recipe: Recipe | None, *, task: str | None, data: str | None, where: Path) -> TaskOptions:
    if recipe is not None and recipe.finetune is not None:
        own = section_of(recipe).task
        changes = {"name": task, "data": data}
        if data is not None:
            changes["dev"] = None
        return TaskOptions.model_validate(
            own.model_dump() | {key: value for key, value in changes.items() if value is not None or key == "dev"}
        )
    if task is None or data is None:
        raise InputError(f"{where}: does not say what to score on: give --task and --data")
    return TaskOptions.model_validate({"name": task, "data": data})


def _classifier(
    folder: Path, *, run: RunFolder | None, options: TaskOptions, batch_size: int, where: Path, display: Display
) -> dict[str, Any]:
    from sortyard.data.tasks import load_examples
    from sortyard.evaluation.classification import evaluate_examples
    from sortyard.interop.predictor import Predictor
    from sortyard.jobs.scoring import ScoringTask

    predictor = Predictor.from_pretrained(folder)
    examples = load_examples(options, "dev")
    task = ScoringTask.of(examples.task)
    if task.type == "classification" and len(task.labels) != len(predictor.label_names):
        raise InputError(
            f"{where}: the model knows {len(predictor.label_names)} classes, the examples {len(task.labels)}; "
            "score it on the task that it was fine-tuned on"
        )
    display.say(f"examples  {len(examples):,} to score")
    limits = [limit for limit in (options.max_length, predictor.max_length) if limit is not None]
    result = evaluate_examples(
        predictor.model,
        tokenizer=predictor.tokenizer,
        examples=examples,
        task=task,
        batch_size=batch_size,
        max_length=min(limits),
    )
    file = result.write(run.eval, name=f"{task.name}-again") if run is not None else None
    return {"run": where, "file": file, **outcome(result)}


def _language_model(
    run: RunFolder, *, recipe: Recipe, data: str | None, batch_size: int, display: Display
) -> dict[str, Any]:
    from sortyard.jobs.pretraining import held_out_scores

    scores = held_out_scores(run, recipe=recipe, data=data, batch_size=batch_size, display=display)
    return {"run": run.path, "data": data if data is not None else "held-out rows", "evaluation": scores}
