"""Names of run folders, and what a run must remember to be continued."""

import glob
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sortyard.durable import FULL, replace_bytes
from sortyard.errors import InputError, LostProcessError
from sortyard.interop.folder_checks import check_model_folder
from sortyard.recipe import LoadedRecipe, Recipe, load_recipe, resolved_yaml
from sortyard.runs.folder import RunFolder

RUNS = Path("runs")
DEMO_RECIPE = "demo.yaml"


@dataclass(frozen=True)
class Job:
    """What a run's recipe does not say.

    Attributes:
        verb: Which one made it.
        start: The model that fine-tuning or adapting started from.
        launch: torchrun's id of the launch that made it, if any, which may come by it again.
        examples: Digest of the text or of the examples that it is trained and scored on.
    """

    verb: Literal["pretrain", "adapt", "finetune"]
    start: str | None = None
    launch: str | None = None
    examples: str | None = None


def next_folder(name: str, *, below: Path = RUNS) -> Path:
    """Returns the first free folder of `name-0001`, `name-0002`, ..."""
    pattern = re.compile(re.escape(name) + r"-(\d{4,})")
    taken = [int(match[1]) for path in below.glob(f"{glob.escape(name)}-*") if (match := pattern.fullmatch(path.name))]
    return below / f"{name}-{max(taken, default=0) + 1:04d}"


def check_free(path: Path) -> None:
    """Refuses a folder that a new run cannot have, before any work is done.

    Raises:
        InputError: The path is a file, or a folder that holds something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        hint = f", or continue it with `sortyard resume {path}`" if (path / "resolved.yaml").is_file() else ""
        raise InputError(f"{path} exists and is not empty: choose another folder with --out{hint}")


def create_run(
    path: Path, *, loaded: LoadedRecipe, recipe: Recipe, job: Job, device: str, fingerprint: str
) -> RunFolder:
    """Makes a run's folder with everything that `resume` needs.

    Args:
        path: A new or empty folder.
        loaded: The recipe as it was given.
        recipe: The recipe as it is run, paths made absolute.
        job: The verb and its start.
        device: The one asked for: `auto`, `cpu` or `cuda`.
        fingerprint: Digest of the data.

    Raises:
        InputError: The folder is taken or cannot be written.
    """
    from sortyard.ops.bucket_attention import choose_backend
    from sortyard.runs.environment import describe_environment

    name = _device_name(device)
    environment = describe_environment(seed=recipe.seed, device=name, data_fingerprint=fingerprint, command=sys.argv)
    environment["attention_backend"] = choose_backend(device=name.partition(":")[0])
    run = RunFolder.create(path, recipe=loaded.as_given, resolved=resolved_yaml(recipe), environment=environment)
    write_job(run, job)
    return run


def write_job(run: RunFolder, job: Job) -> None:
    """Keeps what a run's recipe does not say."""
    replace_bytes(run.path / "job.json", (json.dumps(asdict(job), indent=2) + "\n").encode())


def _device_name(wanted: str) -> str:
    import torch

    from sortyard.runs.environment import finds_gpu

    return f"cuda: {torch.cuda.get_device_name(0)}" if finds_gpu(wanted) else "cpu"


@contextmanager
def discarded_if_untrained(run: RunFolder) -> Iterator[None]:
    """Removes a new run that fails before anything took long: it would only stand in the way of the next try.

    A run that has a shard of its text or has begun to train stays, as it can be resumed, and so does one that lost a
    process. The caller holds the run's lock.
    """
    try:
        yield
    except LostProcessError:
        raise
    except SystemExit as stop:
        if stop.code == 2 and not _has_begun(run):  # so said the processes that were started for it
            _remove(run.path)
        raise
    except Exception as error:
        full = _is_full_disk(error)
        if not (_has_begun(run) or (full and run.events.exists())):
            _remove(run.path)
            raise
        if full and not isinstance(error, InputError):
            raise InputError(
                f"{run.path}: the disk is full; what is done is kept: make room, then continue with "
                f"`sortyard resume {run.path}`"
            ) from error
        if type(error) is InputError and "sortyard resume" not in str(error):
            raise InputError(
                f"{error}. What is done is kept: when that is mended, continue with `sortyard resume {run.path}`"
            ) from error
        raise


def _has_begun(run: RunFolder) -> bool:
    """Whether a run has something to go on from: the first line of its metrics may come after its first checkpoint."""
    has_shards = any((run.path / "data" / "shards").glob("*.npy"))
    return has_shards or run.metrics.exists() or any(run.checkpoints.glob("step-*"))


def _remove(folder: Path) -> None:
    """Removes a folder; where it is a link, or another disk is mounted there, what is in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _is_full_disk(error: Exception) -> bool:
    return any(
        (isinstance(reason, OSError) and reason.errno in FULL) or "No space left" in str(reason)
        for reason in (error, error.__cause__)
    )


def open_job(run: RunFolder) -> tuple[Job, Recipe]:
    """Reads back what `create_run` wrote; the recipe is what resolved.yaml holds now.

    Raises:
        InputError: The run was not started by a verb, or its files are damaged.
    """
    path = run.path / "job.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read, so this run cannot be continued ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one JSON object, so this run cannot be continued")
    verb, start, launch = content.get("verb"), content.get("start"), content.get("launch")
    if verb not in ("pretrain", "adapt", "finetune"):
        raise InputError(f"{path}: verb is {verb!r}; it must be pretrain, adapt or finetune")
    if not (start is None or isinstance(start, str)):
        raise InputError(f"{path}: start is {start!r}; it must be the name of a folder or model, or null")
    examples = content.get("examples")
    job = Job(verb, start, str(launch) if launch else None, str(examples) if examples else None)
    return job, load_recipe(run.resolved).recipe


def is_demo(path: Path) -> bool:
    """Says whether a folder is a demo's, which holds two runs."""
    return (path / DEMO_RECIPE).is_file()


def model_folder(source: Path) -> Path:
    """Returns the folder that holds the model of a run, of a demo, or that is one itself.

    Raises:
        InputError: There is no model at this place, or one that no library should read.
    """
    for folder in (source, source / "model", source / "finetune" / "model"):
        if (folder / "config.json").is_file():
            check_model_folder(folder)
            return folder
    if not source.exists():
        raise InputError(f"{source}: there is no such folder; give a run's folder or a Hugging Face model's")
    hint = f"; finish it with `sortyard resume {source}`" if (source / "resolved.yaml").is_file() else ""
    raise InputError(f"{source}: holds no model (no model/config.json){hint}")
