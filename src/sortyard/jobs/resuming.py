"""Continuing an interrupted run."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from sortyard.errors import InputError
from sortyard.jobs.changing import settled_recipe
from sortyard.jobs.display import Display
from sortyard.jobs.folders import Job, is_demo, open_job, write_job
from sortyard.jobs.pretraining import finished_run, run_pretraining
from sortyard.jobs.processes import (
    check_layout,
    first_then_others,
    go_on_in_processes,
    is_first,
    meet,
    must_start_others,
    refuse_many,
)
from sortyard.jobs.sections import pretrain_section
from sortyard.recipe import Recipe, load_recipe
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock


def resume_run(
    path: Path, *, display: Display, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Takes a run to its end from wherever it stopped.

    Args:
        path: The run's folder, or a demo's.
        display: Told what is being done.
        overrides: Settings to change, like `pretrain.loop.steps=2000`.
        allow: Keys whose values may differ from what the run was trained with.

    Returns:
        What the run's verb returns.

    Raises:
        InputError: The folder is no run, another process works in it, what it started from is gone, or its recipe has
            changed in a way that is not allowed.
    """
    if is_demo(path):
        if overrides or allow:
            raise InputError(f"{path}: is a demo, of two runs; change {path / 'pretrain'} or {path / 'finetune'}")
        from sortyard.jobs.demo import resume_demo

        with run_lock(path):
            return resume_demo(path, display=display)
    run = RunFolder.open(path)
    job, recipe = open_job(run)
    if overrides:
        recipe = load_recipe(run.resolved, overrides=overrides).recipe
    if job.verb == "pretrain":
        check_layout(recipe)
        meet(recipe, pretrain_section(recipe).loop)
    else:
        refuse_many(job.verb)
    # Locked while text is prepared, too, before the training loop would lock the folder itself.
    with run_lock(run.path) if is_first() else nullcontext():
        recipe = first_then_others(lambda: settled_recipe(run, overrides=overrides, allow=allow))
        if is_first() and any(key.startswith("pretrain.data.") for key in allow):
            write_job(run, replace(job, examples=None))  # whatever the text is now
        count = must_start_others(recipe, pretrain_section(recipe).loop) if job.verb == "pretrain" else 0
        if not count:
            return _go_on(run, job=job, recipe=recipe, allow=allow, display=display)
        go_on_in_processes(run.path, recipe=recipe, count=count, display=display)
    return finished_run(run)


def _go_on(run: RunFolder, *, job: Job, recipe: Recipe, allow: Sequence[str], display: Display) -> dict[str, Any]:
    if job.verb == "pretrain":
        return run_pretraining(run, recipe=recipe, display=display)
    if job.start is None:
        raise InputError(f"{run.path / 'job.json'}: start is missing, so this run cannot be continued")
    if job.verb == "adapt":
        from sortyard.jobs.adapting import run_adapting

        return run_adapting(run, recipe=recipe, start=job.start, display=display)
    from sortyard.jobs.finetuning import run_finetuning

    others = any(key.startswith("finetune.task.") for key in allow)
    return run_finetuning(run, recipe=recipe, job=job, allows_other_examples=others, display=display)
