"""The course of a study of trainings: arms are trained, and whatever is finished is compared and written down."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sortyard.data.examples import digest_of
from sortyard.data.options import TaskOptions
from sortyard.data.tasks import TASKS, load_examples
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.jobs.sections import pretrain_section
from sortyard.recipe import LoadedRecipe, Recipe
from sortyard.reports.run_data import read_json
from sortyard.runs.environment import finds_gpu
from sortyard.studies.bench.results import BenchResult, code_digest, new_result, save_result
from sortyard.studies.given import GIVEN, keep_given, note_machine
from sortyard.studies.trained.arms import Arm
from sortyard.studies.trained.curves import Curve, read_curve
from sortyard.studies.trained.examples import Answers, read_answers, resampled_gain
from sortyard.studies.trained.runs import ArmRun, Task, planned_runs, prepare_text, train

Json = dict[str, Any]
Say = Callable[[str], None]
MEASURED = ("data", "evaluation", "model", "objectives", "ops", "tokenizer", "training")
EVALUATIONS = 12
CUSTOM = "custom"
_PLACES = ("/", "~", ".")
_LOCAL: Any = {"tokenizer": {"path"}, "pretrain": {"data": {"path"}}, "finetune": True}


@dataclass(frozen=True)
class TrainedPlan:
    """What a study trains.

    Attributes:
        loaded: The recipe and where it came from.
        data: Text, or a prepared folder.
        seeds: Seeds, from 0 on.
        jobs: Runs at a time, one core each.
        task: What to fine-tune on, or None.
    """

    loaded: LoadedRecipe
    data: str
    seeds: int
    jobs: int
    task: Task | None

    @property
    def recipe(self) -> Recipe:
        """The recipe, evaluated often enough for a curve, and with nothing but a data path of this study's."""
        section = pretrain_section(self.loaded.recipe)
        if section.loop.steps is None:
            raise InputError(
                "pretrain.loop.steps is not set: arms are compared over equal steps; give steps, not epochs"
            )
        every = max(1, section.loop.steps // EVALUATIONS)
        loop = section.loop.model_copy(update={"eval_every": every})
        return self.loaded.recipe.model_copy(update={"pretrain": section.model_copy(update={"loop": loop})})

    def command(self, verb: str) -> str:
        """Return the command line that asks for this plan, without places of this machine."""
        words = [self.loaded.source.stem, *map(_without_place, self.loaded.overrides), f"--data {Path(self.data).name}"]
        words += [f"--seeds {self.seeds} --jobs {self.jobs}"]
        words += [f"--task {self.task.name} --task-data {Path(self.task.data).name}"] if self.task else []
        return " ".join(["sortyard study", verb, *words])


@dataclass(frozen=True)
class TrainedStudy:
    """What differs between studies of trainings.

    Attributes:
        name: The files are NAME.json and NAME.html.
        what: One sentence that says what the numbers are.
        arms: What is trained.
        summarise: What follows from the cells.
        write_page: Writes the page into a folder.
        write_text: Writes the tables as text.
    """

    name: str
    what: str
    arms: Sequence[Arm]
    summarise: Callable[[Mapping[str, Json]], Json]
    write_page: Callable[[BenchResult, Path], object]
    write_text: Callable[[BenchResult], str]


def run_trained(
    study: TrainedStudy, plan: TrainedPlan, *, folder: Path, work: Path, say: Say
) -> tuple[BenchResult, str]:
    """Train what is missing; after every run NAME.json and NAME.html hold what is finished.

    Args:
        study: What is compared.
        plan: What it is trained on.
        folder: An existing folder for the result.
        work: Folder of the runs; what is finished there is not trained again.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: text, recipe, examples or folder cannot be used, or the folder holds runs of other ones or of
            other code.
    """
    work.mkdir(parents=True, exist_ok=True)
    loop = pretrain_section(plan.recipe).loop
    data = prepare_text(plan.recipe, data=plan.data, work=work, say=say)
    _check_same_text(data, work=work)
    _keep_given(plan, work=work)
    pretraining, finetuning = planned_runs(study.arms, seeds=plan.seeds, data=data, work=work, task=plan.task)
    runs = [*pretraining, *finetuning]
    result = new_result(
        study.name, what=study.what, command=plan.command(study.name), seed=0, threads=1,
        device="cuda" if finds_gpu(loop.device) else "cpu",
        settings={
            "recipe": plan.recipe.model_dump(mode="json", exclude=_LOCAL),
            "arms": {arm.name: arm.title for arm in study.arms},
            "task": plan.task.name if plan.task else "",
        },
        sources=MEASURED,
    )  # fmt: skip
    result.settings["machines"] = _machines(result, runs, work=work, say=say)

    def collect() -> None:
        _collect(result, study.arms, pretraining, finetuning)
        if result.cells:
            result.summary = study.summarise(result.cells) | {"on_examples": _on_examples(study.arms, finetuning)}
            save_result(result, folder=folder)
            study.write_page(result, folder)

    collect()
    train(runs, jobs=plan.jobs, say=say, after=collect)
    collect()
    return result, study.write_text(result)


def _without_place(override: str) -> str:
    """A setting as it was given, but of places on this machine their last part only."""
    key, _, given = override.partition("=")
    value = yaml.safe_load(given)
    values = value if isinstance(value, list) else [value]
    if not any(isinstance(each, str) and each.startswith(_PLACES) for each in values):
        return override
    names = [Path(each).name if isinstance(each, str) and each.startswith(_PLACES) else each for each in values]
    return f"{key}={json.dumps(names) if isinstance(value, list) else names[0]}"


def _check_same_text(data: Path, *, work: Path) -> None:
    """Refuse to pair runs over different texts."""
    index = (data / "shards" / "index.json").read_bytes()
    kept = work / "text.json"
    if kept.is_file() and kept.read_bytes() != index:
        raise InputError(f"{work}: the runs here are of another text; give another --work folder, or remove this one")
    replace_bytes(kept, index)


def _keep_given(plan: TrainedPlan, *, work: Path) -> None:
    """Refuse to pair runs of different code, or over different examples."""
    given = {"code": code_digest(MEASURED)}
    if plan.task is not None:
        options = _task_options(plan.recipe, plan.task)
        examples = (load_examples(options, "train"), load_examples(options, "dev"))
        given[f"examples of {plan.task.name}"] = digest_of(*examples)
    keep_given(given, file=work / GIVEN, remedy="give another --work folder, or remove this one")


def _task_options(recipe: Recipe, task: Task) -> TaskOptions:
    if task.name not in (*TASKS, CUSTOM):
        raise InputError(f"--task {task.name}: is none of {', '.join((*TASKS, CUSTOM))}")
    asked = {"name": task.name, "data": task.data}
    own = {} if recipe.finetune is None else recipe.finetune.task.model_dump()
    return TaskOptions(**own | asked)


def _machines(result: BenchResult, runs: Sequence[ArmRun], *, work: Path, say: Say) -> list[Json]:
    """The machines of the runs, this one among them where there is something left to do; more than one is told."""
    file = work / "machines.json"
    if all(run.is_done for run in runs):
        found: list[Json] = read_json(file).get("machines", [])
        return found
    found = note_machine(result.machine, file=file)
    if len(found) > 1:
        names = "; ".join(f"{one['cores']} cores of {one['cpu']}, {one['device']}" for one in found)
        say(f"{work}: the runs are of {len(found)} machines ({names}), so their times cannot be compared")
    return found


def _collect(result: BenchResult, arms: Sequence[Arm], first: Sequence[ArmRun], second: Sequence[ArmRun]) -> None:
    sections = {arm.name: pretrain_section(arm.recipe) for arm in arms}
    scores = {(run.arm, run.seed): _score(run) for run in second if run.is_done}
    for run in first:
        key = f"{run.arm}/seed{run.seed}"
        if run.is_done and key not in result.cells:
            curve = read_curve(run, section=sections[run.arm])
            result.cells[key] = {"arm": run.arm, "seed": run.seed, **curve.record(), "score": None}
        if run.is_done and (run.arm, run.seed) in scores:
            result.cells[key]["score"] = scores[run.arm, run.seed]
    result.complete = all(run.is_done for run in (*first, *second))


def _score(run: ArmRun) -> Json:
    """The main metric of a fine-tuned run, at its last step."""
    content = _evaluation(run)
    return {"metric": content["main_metric"], "value": content["metrics"][content["main_metric"]]}


def _evaluation(run: ArmRun) -> Json:
    """What fine-tuning wrote at its end; `sortyard eval` may have added others beside it."""
    return next(content for path in _evaluations(run) if (content := read_json(path)).get("task") == path.stem)


def _evaluations(run: ArmRun) -> Iterator[Path]:
    return (run.folder / "eval").glob("*.json")


def _on_examples(arms: Sequence[Arm], runs: Sequence[ArmRun]) -> Json:
    """How much better the first arm answers the task's examples than each other."""
    answers: dict[str, dict[str, Answers]] = {arm.name: {} for arm in arms}
    metric = ""
    for run in runs:
        if run.is_done:
            content = _evaluation(run)
            path, metric = run.folder / "eval" / f"{content['task']}-predictions.jsonl", content["main_metric"]
            answers[run.arm][str(run.seed)] = read_answers(path, label_names=content["label_names"])
    base, *others = answers.values()
    names = [arm.name for arm in arms][1:]
    gains = {name: resampled_gain(base, other, metric=metric) for name, other in zip(names, others, strict=True)}
    return {name: gain.record() for name, gain in gains.items() if gain is not None}


def curves_of(cells: Mapping[str, Json], arm: str) -> dict[str, Curve]:
    """An arm's curves by seed."""
    fields = Curve.__dataclass_fields__
    own = sorted((cell for cell in cells.values() if cell["arm"] == arm), key=lambda cell: int(cell["seed"]))
    return {str(cell["seed"]): Curve(**{name: cell[name] for name in fields}) for cell in own}


def scores_of(cells: Mapping[str, Json], arm: str) -> dict[str, float]:
    """An arm's scores on the task by seed, where it was fine-tuned."""
    own = (cell for cell in cells.values() if cell["arm"] == arm and cell["score"] is not None)
    return {
        str(cell["seed"]): float(cell["score"]["value"]) for cell in sorted(own, key=lambda cell: int(cell["seed"]))
    }
