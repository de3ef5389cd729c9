"""Continuing an interrupted run."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.folders import is_demo, open_job
from sortyard.jobs.processes import go_on_in_processes, is_first, meet, must_start_others, refuse_many
from sortyard.jobs.sections import pretrain_section
from sortyard.training.run_folder import RunFolder
from sortyard.training.run_lock import run_lock


def resume_run(path: Path, *, display: Display) -> dict[str, Any]:
    """Takes a run to its end from wherever it stopped.

    Args:
        path: The run's folder, or a demo's.
        display: Told what is being done.

    Returns:
        What the run's verb returns.

    Raises:
        InputError: The folder is no run, another process works in it, or what it started from is gone.
    """
    if is_demo(path):
        from sortyard.jobs.demo import resume_demo

        with run_lock(path):
            return resume_demo(path, display=display)
    from sortyard.jobs.pretraining import finished_run, run_pretraining

    run = RunFolder.open(path)
    job, recipe = open_job(run)
    if job.verb == "pretrain":
        meet(recipe, pretrain_section(recipe).loop)
        count = must_start_others(recipe, pretrain_section(recipe).loop)
        if count:
            go_on_in_processes(run.path, recipe=recipe, count=count)
            return finished_run(run)
    else:
        refuse_many(job.verb)
    with (
        run_lock(run.path) if is_first() else nullcontext()
    ):  # also while text is prepared, before the training loop would lock the folder itself
        if job.verb == "pretrain":
            return run_pretraining(run, recipe=recipe, display=display)
        if job.start is None:
            raise InputError(f"{path / 'job.json'}: start is missing, so this run cannot be continued")
        if job.verb == "adapt":
            from sortyard.jobs.adapting import run_adapting

            return run_adapting(run, recipe=recipe, start=job.start, display=display)
        from sortyard.jobs.finetuning import run_finetuning

        return run_finetuning(run, recipe=recipe, start=job.start, display=display)
