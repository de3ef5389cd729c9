"""Fine-tuning runs as processes: several at a time, one core each, resumed where they stop, ended by Ctrl-C."""

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.errors import InputError, LostProcessError
from sortyard.jobs.display import Display
from sortyard.reports.wording import duration
from sortyard.runs.folder import RunFolder
from sortyard.runs.json_lines import read_lines
from sortyard.studies.crew import ONE_CORE, Crew, Ended, ending, last_words
from sortyard.studies.given import keep_given

Json = dict[str, Any]


@dataclass(frozen=True)
class TrainingRun:
    """One run of `sortyard finetune`.

    Attributes:
        name: What it is called in messages, such as "rte seed 1".
        folder: Of the run.
        words: Recipe, settings and options of the verb; folder and seed are added.
        seed: Of head, order and dropout.
        task: What its evaluation is called.
        metric: The figure that counts; None takes the mean of the task's metrics, as GLUE does where there are two.
        weight: How long it takes beside the others.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    seed: int
    task: str
    metric: str | None = None
    weight: float = 1.0

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def spent(self) -> Path:
        """Processor seconds of all its processes."""
        return self.folder.with_name(f"{self.folder.name}.seconds.json")

    @property
    def is_done(self) -> bool:
        """Whether the run ended well."""
        return self.spent.is_file() and bool(_read(self.spent).get("done"))

    def command(self) -> list[str]:
        """The words that start the run, or go on with it."""
        begun = (self.folder / "resolved.yaml").is_file()
        own = ["finetune", *self.words, "--seed", str(self.seed), "--out", str(self.folder)]
        return [*(["resume", str(self.folder)] if begun else own), "--quiet"]


@dataclass(frozen=True)
class Score:
    """What one finished run scored, and what it took.

    Attributes:
        seed: Of the run.
        score: The figure that counts.
        metrics: All of them.
        seconds: Of training.
        processor_seconds: Of the whole process, reading and scoring included; None where the system does not tell.
        steps: Optimizer steps.
    """

    seed: int
    score: float
    metrics: dict[str, float]
    seconds: float
    processor_seconds: float | None
    steps: int


def run_all(runs: Sequence[TrainingRun], *, jobs: int, keep_models: bool, display: Display) -> None:
    """Do all runs that are not done.

    A run that fails for another reason than its input does not keep the others from being done.

    Args:
        runs: In the order of their beginning.
        jobs: How many at a time.
        keep_models: Whether weights stay after a run; its scores and predictions always do.
        display: Told of every run that ends.

    Raises:
        InputError: a run's input is at fault; those that are going on are stopped and can be continued.
        LostProcessError: some failed; the others are done.
        KeyboardInterrupt: the person asked for it; what was begun is saved.
    """
    for run in runs:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
    account = _Account(runs, keep_models=keep_models, display=display)
    crew = Crew[TrainingRun](
        words=lambda run: run.command(), log=lambda run: run.log, began=_clear, ended=account.ended,
        environment=ONE_CORE,
    )  # fmt: skip
    try:
        crew.work(account.left, at_once=jobs)
    except (KeyboardInterrupt, SystemExit):
        display.say("stopped; the same command goes on")
        raise
    if account.failed:
        names = ", ".join(f"{run.name} (see {run.log})" for run in account.failed)
        raise LostProcessError(
            f"{len(account.failed)} of {len(runs)} runs failed: {names}; the same command tries them again"
        )


def read_score(run: TrainingRun) -> Score | None:
    """Read what a run scored; None where it is not done."""
    file = run.folder / "eval" / f"{run.task}.json"
    if not run.is_done or not file.is_file():
        return None
    metrics = {name: float(value) for name, value in _read(file)["metrics"].items()}
    last = [line for line in read_lines(RunFolder(run.folder).metrics) if line.get("kind") == "train"][-1]
    spent = _read(run.spent).get("processor_seconds")
    own = [value for name, value in metrics.items() if name != "combined_score"]
    return Score(
        seed=run.seed,
        score=metrics[run.metric] if run.metric else metrics.get("combined_score", own[0]),
        metrics=metrics,
        seconds=round(float(last["seconds"]), 1),
        processor_seconds=None if spent is None else round(float(spent), 1),
        steps=int(last["step"]),
    )


def medians(scores: Sequence[Score]) -> dict[str, float]:
    """The median over the seeds of every metric."""
    return {name: statistics.median(score.metrics[name] for score in scores) for name in scores[0].metrics}


def check_plan(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keep runs of different settings apart: remember them at the first call, and compare at every later one.

    Args:
        folder: Of all the runs; made where it is missing.
        settings: Whatever changes a score, as JSON values; a later call may name more of them.

    Raises:
        InputError: the folder holds something else, or runs of other settings.
    """
    file = folder / "plan.json"
    if not file.is_file() and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise InputError(f"--out {folder}: exists and holds something else; choose a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    keep_given(settings, file=file, remedy="give another folder by --out, or remove this one")


class _Account:
    """What has become of the runs."""

    def __init__(self, runs: Sequence[TrainingRun], *, keep_models: bool, display: Display) -> None:
        self.left = [run for run in runs if not run.is_done]
        self.failed: list[TrainingRun] = []
        self._num_runs, self._keep_models, self._say = len(runs), keep_models, display.say
        self._weight_done, self._began = 0.0, time.monotonic()
        if len(self.left) < len(runs):
            self._say(f"runs      {len(runs) - len(self.left)} of {len(runs)} are done already")

    def ended(self, run: TrainingRun, end: Ended) -> None:
        """Note how a run ended, and tell it."""
        _note(run, end.processor_seconds, done=end.status == 0)
        if end.was_stopped:
            return
        if end.status == 2:
            raise InputError(f"{run.name}: {last_words(run.log)}")
        if end.status != 0:
            self.failed.append(run)
            self._say(f"failed    {run.name}: {ending(end.status)}, {last_words(run.log)}")
            return
        if not self._keep_models:
            _drop_weights(run.folder)
        self.left.remove(run)
        self._tell(run)

    def _tell(self, run: TrainingRun) -> None:
        self._weight_done += run.weight
        left = [each for each in self.left if each not in self.failed]
        rest = (time.monotonic() - self._began) / self._weight_done * sum(each.weight for each in left)
        score = read_score(run)
        result = "" if score is None else f": {score.score:.4f} in {duration(score.seconds)}"
        more = f"; about {duration(rest)} for {len(left)} more" if left else ""
        self._say(f"run       {self._num_runs - len(left)} of {self._num_runs}: {run.name}{result}{more}")


def _clear(run: TrainingRun) -> None:
    """Remove what a killed process left before there was a run."""
    if run.folder.exists() and not (run.folder / "resolved.yaml").is_file():
        shutil.rmtree(run.folder)


def _note(run: TrainingRun, seconds: float | None, *, done: bool) -> None:
    """Add to the processor seconds that earlier processes of the run took."""
    before = _read(run.spent).get("processor_seconds", 0.0) if run.spent.is_file() else 0.0
    total = None if seconds is None or before is None else before + seconds
    replace_bytes(run.spent, json.dumps({"done": done, "processor_seconds": total}).encode())


def _drop_weights(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in (folder / "model").glob("*.safetensors"):
        path.unlink()


def _read(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it and run the same command again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one JSON object; remove it and run the same command again")
    return content
