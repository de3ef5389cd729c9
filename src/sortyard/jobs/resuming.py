"""Continuing an interrupted run."""

from pathlib import Path
from typing import Any

from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.folders import is_demo, open_job
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

        return resume_demo(path, display=display)
    run = RunFolder.open(path)
    job, recipe = open_job(run)
    with run_lock(run.path):  # also while text is prepared, before the training loop would lock the folder itself
        if job.verb == "pretrain":
            from sortyard.jobs.pretraining import run_pretraining

            return run_pretraining(run, recipe=recipe, display=display)
        if job.start is None:
            raise InputError(f"{path / 'job.json'}: start is missing, so this run cannot be continued")
        if job.verb == "adapt":
            from sortyard.jobs.adapting import run_adapting

            return run_adapting(run, recipe=recipe, start=job.start, display=display)
        from sortyard.jobs.finetuning import run_finetuning

        return run_finetuning(run, recipe=recipe, start=job.start, display=display)
