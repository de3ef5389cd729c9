"""From nothing to a report: pretraining, fine-tuning and a comparison on Python's own documentation."""

import json
from pathlib import Path
from typing import Any

from sortyard.data.stdlib_task import DEV, TEXT, TRAIN, write_stdlib_files
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.finetuning import start_finetuning
from sortyard.jobs.folders import DEMO_RECIPE, RUNS, check_free
from sortyard.jobs.pretraining import start_pretraining
from sortyard.jobs.resuming import resume_run
from sortyard.jobs.sections import finetune_section, pretrain_section
from sortyard.recipe import LoadedRecipe, Recipe, load_recipe, resolved_yaml

TASK = "Telling docstrings from comments"


def run_demo(loaded: LoadedRecipe, *, out: Path | None, display: Display) -> dict[str, Any]:
    """Runs the whole demo in a new folder.

    Args:
        loaded: A recipe with both sections; their data are replaced by the demo's own.
        out: The demo's folder; None takes `runs/demo`, or the next free number beside it.
        display: Told what is being done.

    Returns:
        JSON values: the folder, the report, and the scores of the model and of the baselines.

    Raises:
        InputError: The recipe lacks a section, or the folder is taken.
    """
    pretrain_section(loaded.recipe)
    finetune_section(loaded.recipe)
    root = out if out is not None else _free_folder(display)
    check_free(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / DEMO_RECIPE).write_text(resolved_yaml(loaded.recipe), encoding="utf-8")
    return _continue(root, loaded, display=display)


def resume_demo(root: Path, *, display: Display) -> dict[str, Any]:
    """Takes an interrupted demo to its end; what is finished is kept."""
    return _continue(root, load_recipe(root / DEMO_RECIPE), display=display)


def _free_folder(display: Display) -> Path:
    first = RUNS / "demo"
    if not first.exists():
        return first
    number = 2
    while (root := RUNS / f"demo-{number:04d}").exists():
        number += 1
    display.say(f"{first} is there already and is left as it is; this demo goes to {root}")
    return root


def _continue(root: Path, loaded: LoadedRecipe, *, display: Display) -> dict[str, Any]:
    try:
        display.say("text      Python's own documentation, read from its standard library")
        write_stdlib_files(root / "data")
        own = LoadedRecipe(_with_data(loaded.recipe, root / "data"), loaded.source, loaded.overrides)
        phases = {"pretrain": root / "pretrain", "finetune": root / "finetune"}
        if (phases["pretrain"] / "resolved.yaml").is_file():
            resume_run(phases["pretrain"], display=display)
        else:
            start_pretraining(own, out=phases["pretrain"], display=display)
        if (phases["finetune"] / "resolved.yaml").is_file():
            found = resume_run(phases["finetune"], display=display)
        else:
            start = str(phases["pretrain"])
            found = start_finetuning(own, start=start, out=phases["finetune"], display=display)
    except KeyboardInterrupt:
        display.say(f"the demo stopped; continue it with `sortyard resume {root}`")
        raise
    return _compare(root, found, display=display)


def _with_data(recipe: Recipe, folder: Path) -> Recipe:
    pretrain, finetune = pretrain_section(recipe), finetune_section(recipe)
    data = pretrain.data.model_copy(update={"path": str(folder / TEXT), "text_column": "text"})
    task = finetune.task.model_copy(update={"data": str(folder / TRAIN), "dev": str(folder / DEV)})
    return recipe.model_copy(
        update={
            "pretrain": pretrain.model_copy(update={"data": data}),
            "finetune": finetune.model_copy(update={"task": task}),
        }
    )


def _compare(root: Path, found: dict[str, Any], *, display: Display) -> dict[str, Any]:
    from sortyard.reports.report import write_report

    if "accuracy" not in found["metrics"]:
        raise InputError(f"{root}: the demo's task is a classification; leave finetune.task.type as it is")
    baselines = [{"name": name, "accuracy": scores["accuracy"]} for name, scores in found["baselines"].items()]
    model = {"name": "sortyard", "accuracy": found["metrics"]["accuracy"]}
    comparison = {"task": TASK, "classes": found["classes"], "model": model, "baselines": baselines}
    replace_bytes(root / "comparison.json", (json.dumps(comparison, indent=2) + "\n").encode())
    report = write_report(root)
    display.say(f"report    {report}   open it in a browser")
    return {
        "run": root,
        "report": report,
        "task": TASK,
        "metric": "accuracy",
        "examples": found["examples"],
        "scores": {row["name"]: row["accuracy"] for row in [*baselines, model]},
        "pretrain": root / "pretrain",
        "finetune": root / "finetune",
        "steps": found["steps"],
        "reason": found["reason"],
    }
