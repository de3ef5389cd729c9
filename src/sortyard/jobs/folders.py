"""Names of run folders, and what a run must remember to be continued."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sortyard.errors import InputError
from sortyard.recipe import LoadedRecipe, Recipe, load_recipe, resolved_yaml
from sortyard.training.run_folder import RunFolder

RUNS = Path("runs")
DEMO_RECIPE = "demo.yaml"


@dataclass(frozen=True)
class Job:
    """What a run's recipe does not say: the verb, and the model that fine-tuning started from."""

    verb: Literal["pretrain", "finetune"]
    start: str | None = None


def next_folder(name: str, *, below: Path = RUNS) -> Path:
    """Returns the first free folder of `name-0001`, `name-0002`, ..."""
    pattern = re.compile(re.escape(name) + r"-(\d{4,})")
    taken = [int(match[1]) for path in below.glob(f"{name}-*") if (match := pattern.fullmatch(path.name))]
    return below / f"{name}-{max(taken, default=0) + 1:04d}"


def check_free(path: Path) -> None:
    """Refuses a folder that a new run cannot have, before any work is done.

    Raises:
        InputError: The path is a file, or a folder that holds something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        hint = f", or continue it with `sortyard resume {path}`" if (path / "resolved.yaml").is_file() else ""
        raise InputError(f"{path} exists and is not empty: choose another folder with --out{hint}")


def create_run(path: Path, *, loaded: LoadedRecipe, recipe: Recipe, job: Job, fingerprint: str) -> RunFolder:
    """Makes a run's folder with everything that `resume` needs.

    Args:
        path: A new or empty folder.
        loaded: The recipe as it was given.
        recipe: The recipe as it is run, paths made absolute.
        job: The verb and its start.
        fingerprint: Digest of the data.

    Raises:
        InputError: The folder is taken or cannot be written.
    """
    import sys

    from sortyard.jobs.loading import device_name
    from sortyard.training.environment import describe_environment

    environment = describe_environment(
        seed=recipe.seed, device=device_name(), data_fingerprint=fingerprint, command=sys.argv
    )
    run = RunFolder.create(path, recipe=loaded.as_given, resolved=resolved_yaml(recipe), environment=environment)
    (path / "job.json").write_text(json.dumps(asdict(job), indent=2) + "\n", encoding="utf-8")
    return run


def open_job(run: RunFolder) -> tuple[Job, Recipe]:
    """Reads back what `create_run` wrote.

    Raises:
        InputError: The run was not started by a verb, or its files are damaged.
    """
    path = run.path / "job.json"
    try:
        job = Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read, so this run cannot be continued ({error})") from error
    if job.verb not in ("pretrain", "finetune"):
        raise InputError(f"{path}: verb is {job.verb!r}; it must be pretrain or finetune")
    return job, load_recipe(run.resolved).recipe


def is_demo(path: Path) -> bool:
    """Says whether a folder is a demo's, which holds two runs."""
    return (path / DEMO_RECIPE).is_file()


def model_folder(source: Path) -> Path:
    """Returns the folder that holds the model of a run, of a demo, or that is one itself.

    Raises:
        InputError: There is no model at this place.
    """
    for folder in (source, source / "model", source / "finetune" / "model"):
        if (folder / "config.json").is_file():
            return folder
    if not source.exists():
        raise InputError(f"{source}: there is no such folder; give a run's folder or a Hugging Face model's")
    hint = f"; finish it with `sortyard resume {source}`" if (source / "resolved.yaml").is_file() else ""
    raise InputError(f"{source}: holds no model (no model/config.json){hint}")
