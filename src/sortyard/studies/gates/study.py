"""`study gates`: what a gate that reads the context is worth, arm by arm (claim C6 of the seed)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sortyard.errors import InputError
from sortyard.studies.bench.results import BenchResult, new_result, resume_result, save_result
from sortyard.studies.gates.arms import ARMS
from sortyard.studies.gates.forecast import duration_text, expected_seconds
from sortyard.studies.gates.gates_page import gates_page, gates_text
from sortyard.studies.gates.latent_mode import NAME as LATENT_MODE
from sortyard.studies.gates.latent_mode import LatentModeTask, learner
from sortyard.studies.gates.latent_mode import settings as latent_settings
from sortyard.studies.gates.mixed_labels import NAME as MIXED_LABELS
from sortyard.studies.gates.mixed_labels import MixedLabelsTask
from sortyard.studies.gates.mixed_labels import settings as label_settings
from sortyard.studies.gates.mixed_text import NAME as MIXED_TEXT
from sortyard.studies.gates.mixed_text import MixedTextTask
from sortyard.studies.gates.mixed_text import settings as text_settings
from sortyard.studies.gates.summary import MEASURED_BEFORE, summarise
from sortyard.studies.gates.tasks import GateTask
from sortyard.studies.gates.training import settings as training_settings
from sortyard.studies.gates.training import train_cell

Json = dict[str, Any]
Say = Callable[[str], None]
Sources = tuple[tuple[str, str], ...]
MEASURED = ("data", "model", "objectives", "ops", "studies/gates", "tokenizer", "training")  # the code of a cell
WHAT = (
    "held-out accuracy or loss of one small model whose experts are chosen by different gates, and of dense layers, "
    "after equal steps on equal data; gains of the context gate are paired over seeds, with 95 % intervals"
)


@dataclass(frozen=True)
class GatesPlan:
    """What `study gates` trains.

    Attributes:
        texts: Name and path of each source of text; empty = no mixed-text task.
        labelled: Name and path of each table with text and label; empty = no mixed-labels task.
        arms: Among `ARMS`.
        seeds: Seeds, from 0 on.
        steps: Numbers of steps of the latent-mode task; empty = leave it out.
        heads: Attention heads of its model.
        lr: Its highest learning rate.
        text_steps: Numbers of steps of the mixed-text task.
        label_steps: Numbers of steps of the mixed-labels task.
        threads: Threads of torch.
    """

    texts: Sources
    labelled: Sources
    arms: tuple[str, ...]
    seeds: int
    steps: tuple[int, ...]
    heads: int
    lr: float
    text_steps: tuple[int, ...]
    label_steps: tuple[int, ...]
    threads: int

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = [f"--data {name}={Path(path).name}" for name, path in self.texts]
        words += [f"--labels {name}={Path(path).name}" for name, path in self.labelled]
        words += [f"--arms {','.join(self.arms)}"] if self.arms != tuple(ARMS) else []
        words += [f"--seeds {self.seeds}", f"--steps {_listed(self.steps)}"]
        words += [f"--heads {self.heads} --lr {self.lr:g}"] if self.steps else []
        words += [f"--text-steps {_listed(self.text_steps)}"] if self.texts else []
        words += [f"--label-steps {_listed(self.label_steps)}"] if self.labelled else []
        return " ".join(["sortyard study gates", *words, f"--threads {self.threads}"])

    def budgets(self) -> dict[str, tuple[int, ...]]:
        """Return the tasks that are asked for, and their numbers of steps."""
        asked = {
            LATENT_MODE: self.steps,
            MIXED_TEXT: self.text_steps if self.texts else (),
            MIXED_LABELS: self.label_steps if self.labelled else (),
        }
        return {task: steps for task, steps in asked.items() if steps}


class Cell(NamedTuple):
    """One training run."""

    task: str
    steps: int
    arm: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.task}/{self.steps}/{self.arm}/seed{self.seed}"


def run_gates(plan: GatesPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Train what is missing, writing gates.json after every cell and gates.html at the end.

    Args:
        plan: What to train.
        folder: An existing folder for the files.
        fresh: Whether to train anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: a source cannot be used, or the folder holds a result of other settings, data or another machine.
    """
    torch.set_num_threads(plan.threads)
    begun = new_result(
        "gates", what=WHAT, command=plan.command(), seed=0, threads=plan.threads, device="cpu",
        settings=_settings(plan), sources=MEASURED,
    )  # fmt: skip
    result = begun if fresh else _take_up(begun, folder=folder, say=say)
    tasks = _tasks(plan, say)
    _check_same_data(tasks, result, folder=folder)
    missing = _missing(plan, result)
    _announce(missing, tasks, result, say=say)
    try:
        _train_missing(missing, tasks, result=result, folder=folder, say=say)
        result.complete = True
    finally:  # an interrupted run keeps what it has
        if result.cells:
            _save(result, folder=folder)
            gates_page(result, folder=folder)
    return result, gates_text(result)


def _settings(plan: GatesPlan) -> Json:
    return {
        LATENT_MODE: latent_settings(learner(num_heads=plan.heads, lr=plan.lr)),
        MIXED_TEXT: text_settings(),
        MIXED_LABELS: label_settings(),
        "training": training_settings(),
    }


def _save(result: BenchResult, *, folder: Path) -> None:
    """Write what there is, with what follows from it, so that no crash leaves the one without the other."""
    is_usual = result.settings[LATENT_MODE] == latent_settings()  # what was measured before had this learner
    result.summary = summarise(result.cells, measured_before=MEASURED_BEFORE if is_usual else {})
    save_result(result, folder=folder)


def _listed(steps: tuple[int, ...]) -> str:
    return ",".join(map(str, steps)) or "0"


def _take_up(begun: BenchResult, *, folder: Path, say: Say) -> BenchResult:
    """Continue an earlier result, also one of other code: runs take hours, and each cell says which code it is of."""
    try:
        stored = json.loads((folder / f"{begun.name}.json").read_text(encoding="utf-8"))
        code, commands = str(stored["code"]), str(stored["command"]).splitlines()
    except (OSError, ValueError, TypeError, KeyError):
        code, commands = begun.code, []  # no result, which is `resume_result`'s to say
    result = resume_result(replace(begun, code=code), folder=folder, fresh=False)
    others = sum(cell["code"] != begun.code for cell in result.cells.values())
    if others:
        say(f"{others} of the {len(result.cells)} runs there are of other code; --fresh trains them anew")
    return replace(result, code=begun.code, command="\n".join(dict.fromkeys([*commands, begun.command])))


def _tasks(plan: GatesPlan, say: Say) -> dict[str, GateTask]:
    make: dict[str, Callable[[], GateTask]] = {
        LATENT_MODE: lambda: LatentModeTask(learner(num_heads=plan.heads, lr=plan.lr)),
        MIXED_TEXT: lambda: MixedTextTask.read(plan.texts, say=say),
        MIXED_LABELS: lambda: MixedLabelsTask.read(plan.labelled, say=say),
    }
    return {name: make[name]() for name in plan.budgets()}


def _missing(plan: GatesPlan, result: BenchResult) -> list[Cell]:
    """The cells to train, seed by seed, so that an interrupted run has whole pairs; then each budget."""
    asked = [
        Cell(task, steps, arm, seed)
        for task, budgets in plan.budgets().items()
        for seed in range(plan.seeds)
        for steps in budgets
        for arm in plan.arms
    ]
    return [cell for cell in asked if cell.key not in result.cells]


def _check_same_data(tasks: Mapping[str, GateTask], result: BenchResult, *, folder: Path) -> None:
    """Refuse to pair arms over different texts."""
    for key, cell in result.cells.items():
        task = tasks.get(cell["task"])
        if task is not None and cell["data"] != task.data:
            raise InputError(
                f"{folder / result.name}.json: {key} was trained on other data than is given now; give the same, or "
                "--out names another folder and --fresh replaces everything there"
            )


def _announce(missing: Sequence[Cell], tasks: Mapping[str, GateTask], result: BenchResult, *, say: Say) -> None:
    """Tell what will be trained and how long it will take."""
    total = 0.0
    for name, task in tasks.items():
        own = [(cell.arm, cell.steps) for cell in missing if cell.task == name]
        seconds = expected_seconds(task, own, cells=result.cells)
        total += seconds
        say(f"{name}: {len(own)} runs to train, about {duration_text(seconds)}")
    if len(tasks) > 1:
        say(f"about {duration_text(total)} in all; interrupt at will, the same command goes on")


def _train_missing(
    missing: Sequence[Cell], tasks: Mapping[str, GateTask], *, result: BenchResult, folder: Path, say: Say
) -> None:
    for number, cell in enumerate(missing, start=1):
        task = tasks[cell.task]
        found = train_cell(task, cell.arm, seed=cell.seed, steps=cell.steps)
        result.cells[cell.key] = {**cell._asdict(), "data": task.data, "code": result.code, **found}
        _save(result, folder=folder)
        say(f"{number}/{len(missing)}  {cell.key}: {found['score']:.4f}, {found['seconds']:.0f} s")
