"""`sortyard eval --suite glue`: the nine tasks with their official metrics, each seed a fine-tuning run of its own."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sortyard.data.glue import TASKS
from sortyard.durable import replace_bytes
from sortyard.errors import InputError, LostProcessError
from sortyard.evaluation.glue_sizes import OFFICIAL_DEV, OFFICIAL_TRAIN
from sortyard.jobs.display import Display
from sortyard.jobs.paths import fingerprint
from sortyard.studies.suites.glue_data import GlueTask, read_tasks
from sortyard.studies.suites.model import SuiteModel, origin, suite_folder
from sortyard.studies.suites.pages import write_suite_page
from sortyard.studies.suites.protocols import Protocol, check_changes, glue_words, settings_of
from sortyard.studies.suites.published import PUBLISHED
from sortyard.studies.suites.runs import Score, TrainingRun, check_plan, medians, read_score, run_all

Json = dict[str, Any]
FIXED_WEIGHT = 300  # of a run, in training examples: starting, scoring, the report
UNCOUNTED = "wnli"  # averages leave it out, as the published ones do


@dataclass(frozen=True)
class GluePlan:
    """What to measure.

    Attributes:
        model: A run, a model's folder or a hub name.
        data: Folder of the tasks' files, or "hub".
        tasks: Names of tasks.
        protocol: `one` setting for all, or what suits `each`.
        changes: Settings that win over the protocol's.
        seeds: Runs of a task, with seeds 0, 1, ...
        jobs: Runs at a time.
        out: Folder of the runs; None takes `runs/glue-MODEL`.
        keep_models: Whether the fine-tuned weights stay.
    """

    model: Path
    data: str
    tasks: tuple[str, ...] = tuple(TASKS)
    protocol: Protocol = "one"
    changes: tuple[str, ...] = ()
    seeds: int = 5
    jobs: int = 2
    out: Path | None = None
    keep_models: bool = False


def run_glue(plan: GluePlan, *, display: Display) -> Json:
    """Fine-tune and score; what earlier calls have done is kept.

    Returns:
        JSON values: what `glue.json` holds, and the files.

    Raises:
        InputError: The model, the data, a setting or the folder cannot be used.
        LostProcessError: A run failed; the result without it is written, as it is when the person stops it.
    """
    check_changes(plan.changes)
    model = SuiteModel.find(plan.model)
    words = {name: _words(plan, GlueTask(name, train="hub")) for name in plan.tasks}
    settings = {name: settings_of(found) for name, found in words.items()}
    _check_positions(model, settings)
    tasks = read_tasks(plan.tasks, data=plan.data)
    for task in tasks:
        display.say(f"task      {task.name}: {_description(task)}")
    folder = suite_folder("glue", model=model, out=plan.out)
    same: Json = {"suite": "glue", "model": model.digest, "protocol": plan.protocol, "changes": plan.changes}
    same |= {f"settings of {name}": found for name, found in settings.items()}
    check_plan(folder, same | {f"data of {task.name}": _fingerprint(task) for task in tasks if not task.missing})
    runs = {task.name: _runs(plan, task, model=model, folder=folder) for task in tasks}
    order = [runs[name][seed] for seed in range(plan.seeds) for name in runs if runs[name]]
    try:
        run_all(order, jobs=plan.jobs, keep_models=plan.keep_models, display=display)
    except (LostProcessError, KeyboardInterrupt, SystemExit):
        if any(run.is_done for run in order):
            _write(plan, tasks, runs=runs, settings=settings, model=model, folder=folder)
        raise
    return _write(plan, tasks, runs=runs, settings=settings, model=model, folder=folder)


def _fingerprint(task: GlueTask) -> str:
    return fingerprint([file for file in (task.train, task.dev) if file is not None])


def _words(plan: GluePlan, task: GlueTask) -> list[str]:
    return glue_words(
        task.name, protocol=plan.protocol, changes=plan.changes, train=str(task.train), dev=task.dev
    )  # fmt: skip


def _check_positions(model: SuiteModel, settings: Mapping[str, Json]) -> None:
    limit, wanted = model.positions(), max(each["max_length"] for each in settings.values())
    if limit is not None and wanted > limit:
        raise InputError(
            f"{model.name}: has {limit} positions, but the tasks are read up to {wanted} tokens; "
            f"add finetune.task.max_length={limit} (the table will say so)"
        )


def _description(task: GlueTask) -> str:
    if task.missing:
        return f"not measured: {task.missing}"
    notes = f" ({', '.join(task.notes())})" if task.notes() else ""
    return f"{task.num_train:,} to train on, {task.num_dev:,} to score{notes}"


def _runs(plan: GluePlan, task: GlueTask, *, model: SuiteModel, folder: Path) -> list[TrainingRun]:
    if task.missing:
        return []
    words = (*_words(plan, task), "--from", model.start)
    return [
        TrainingRun(
            f"{task.name} seed {seed}",
            folder / task.name / f"seed-{seed}",
            words,
            seed,
            task.name,
            weight=FIXED_WEIGHT + task.num_train,
        )
        for seed in range(plan.seeds)
    ]


def _write(
    plan: GluePlan,
    tasks: Sequence[GlueTask],
    *,
    runs: Mapping[str, Sequence[TrainingRun]],
    settings: Mapping[str, Json],
    model: SuiteModel,
    folder: Path,
) -> Json:
    scores = {name: [score for run in each if (score := read_score(run)) is not None] for name, each in runs.items()}
    measured = {task.name: _task_record(task, scores[task.name], settings=settings[task.name]) for task in tasks}
    first = next((run.folder for each in runs.values() for run in each if run.is_done), None)
    found = {
        "suite": "glue",
        "model": model.name,
        "model_digest": model.digest,
        "protocol": plan.protocol,
        "changes": list(plan.changes),
        "seeds": list(range(plan.seeds)),
        **(origin(first) if first is not None else {}),
        "tasks": measured,
        "average": _average(measured),
        "published": [each.record([name for name in measured if _counts(name, measured)]) for each in PUBLISHED],
    }
    files = [folder / "glue.json", *([model.run / "eval" / "glue.json"] if model.run is not None else [])]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        replace_bytes(file, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
    page = write_suite_page(found, folder=folder)
    return {**found, "files": [str(file) for file in (*files, page)]}


def _task_record(task: GlueTask, scores: Sequence[Score], *, settings: Json) -> Json:
    metrics = TASKS[task.name].metrics
    record: Json = {"metrics": list(metrics), "settings": settings}
    if task.missing or not scores:
        return record | {"measured": False, "why_not": task.missing or "no run of it is done"}
    values = [score.score for score in scores]
    spent = [score.processor_seconds for score in scores if score.processor_seconds is not None]
    return record | {
        "measured": True,
        "score": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "median": medians(scores),
        "seeds": [asdict(score) for score in scores],
        "train_examples": task.num_train,
        "train_official": OFFICIAL_TRAIN[task.name],
        "scored_examples": task.num_dev,
        "scored_official": OFFICIAL_DEV[task.name],
        "notes": task.notes(),
        "processor_seconds": round(sum(spent), 1) if len(spent) == len(scores) else None,
    }


def _counts(name: str, measured: Mapping[str, Json]) -> bool:
    return name != UNCOUNTED and bool(measured[name]["measured"])


def _average(measured: Mapping[str, Json]) -> Json | None:
    """The mean over the tasks that were measured, WNLI left out; None where there is no other."""
    names = [name for name in measured if _counts(name, measured)]
    missing = [name for name in TASKS if name not in names and name != UNCOUNTED]
    if not names:
        return None
    score = statistics.mean(measured[name]["score"] for name in names)
    return {"score": score, "tasks": names, "without": missing}
