"""The runs of a study: every arm with every seed, pretrained and, where asked, fine-tuned; each a run folder."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.errors import InputError, LostProcessError
from sortyard.jobs.corpora import is_prepared, prepare_folder
from sortyard.jobs.display import Display
from sortyard.jobs.sections import pretrain_section
from sortyard.recipe import Recipe, resolved_yaml
from sortyard.reports.wording import duration
from sortyard.studies.crew import ONE_CORE, Crew, Ended, ending, last_words
from sortyard.studies.trained.arms import Arm

Json = dict[str, Any]
Say = Callable[[str], None]
PREPARED = "prepared"
_ALIKE = ("loop.num_threads=1", "loop.tensorboard=false", "loop.keep_checkpoints=1")


@dataclass(frozen=True)
class Task:
    """What the pretrained models are fine-tuned on.

    Attributes:
        name: A GLUE task or custom.
        data: Its folder or file.
    """

    name: str
    data: str


@dataclass(frozen=True)
class ArmRun:
    """One run folder.

    Attributes:
        arm: The arm's name.
        seed: Of weights, order and masks.
        folder: Of the run.
        words: The verb and its arguments, without --out.
        start: The run that it starts from; None for pretraining.
    """

    arm: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    start: "ArmRun | None" = None

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def spent(self) -> Json:
        """Whether it is done, the seconds that it took so far, and whether some of them are unknown ("lost")."""
        path = self._record
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def is_done(self) -> bool:
        """Whether the run ended well."""
        return bool(self.spent.get("done"))

    def command(self) -> list[str]:
        """The words that start the run, or go on with it."""
        if (self.folder / "resolved.yaml").is_file():
            return ["resume", str(self.folder), "-q"]
        return [*self.words, "--out", str(self.folder), "-q"]

    def note_begin(self) -> None:
        """Keep that a process works on the run: if this is found at the next beginning, nobody saw that process end."""
        before = self.spent if (self.folder / "resolved.yaml").is_file() else {}  # what begins anew costs anew
        self._keep(before | {"open": True, "lost": bool(before.get("lost") or before.get("open"))})

    def note_end(self, ended: Ended) -> None:
        """Add to what the run took."""
        before = self.spent
        self._keep({
            "done": ended.status == 0 and not ended.was_stopped,
            "seconds": before.get("seconds", 0.0) + ended.seconds,
            "processor_seconds": before.get("processor_seconds", 0.0) + (ended.processor_seconds or 0.0),
            "open": False,
            "lost": bool(before.get("lost")) or ended.processor_seconds is None,
        })  # fmt: skip

    def _keep(self, record: Json) -> None:
        replace_bytes(self._record, json.dumps(record).encode())

    @property
    def _record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.seconds.json")


def prepare_text(recipe: Recipe, *, data: str, work: Path, say: Say) -> Path:
    """Tokenize the text once for all arms; what is prepared already is kept.

    Args:
        recipe: Says which tokenizer is trained.
        data: A prepared folder, or text of any kind that pretraining reads.
        work: Where the prepared text goes.
        say: Takes a line of progress.

    Returns:
        The prepared folder.

    Raises:
        InputError: the text cannot be read, or the folder holds another.
    """
    if is_prepared(data):
        return Path(data).expanduser().resolve()
    folder, tokenizer, column = work / PREPARED, recipe.tokenizer, pretrain_section(recipe).data.text_column
    path = Path(tokenizer.path) if tokenizer.path else None
    prepare_folder(
        data, out=folder, vocab_size=tokenizer.vocab_size, tokenizer=path, text_column=column, display=Display(say=say)
    )
    return folder.resolve()


def planned_runs(
    arms: Sequence[Arm], *, seeds: int, data: Path, work: Path, task: Task | None
) -> tuple[list[ArmRun], list[ArmRun]]:
    """Write each arm's recipe and name its runs, seed by seed, so that an interrupted study has whole pairs.

    Args:
        arms: The arms.
        seeds: Seeds, from 0 on.
        data: The prepared text.
        work: Where recipes and runs go.
        task: What to fine-tune on, or None.

    Returns:
        The runs of pretraining, and those of fine-tuning.

    Raises:
        InputError: the folder holds runs of another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    files = {arm.name: _write_recipe(arm, work=work) for arm in arms}
    source = json.dumps(str(data))
    first, second = [], []
    places = [
        (seed, arm) for is_extra in (False, True) for seed in range(seeds) for arm in arms if arm.is_extra == is_extra
    ]
    for seed, arm in places:
        words = ("pretrain", str(files[arm.name]), *(f"pretrain.{word}" for word in _ALIKE))
        run = ArmRun(
            arm.name, seed, work / f"{arm.name}-seed{seed}",
            (*words, f"pretrain.data.path={source}", "--seed", str(seed)),
        )  # fmt: skip
        first.append(run)
        if task is not None:
            given = ("--task", task.name, "--data", task.data, "--from", str(run.folder), "--seed", str(seed))
            words = ("finetune", str(files[arm.name]), *(f"finetune.{word}" for word in _ALIKE), *given)
            second.append(ArmRun(arm.name, seed, work / f"{arm.name}-{task.name}-seed{seed}", words, start=run))
    return first, second


def _write_recipe(arm: Arm, *, work: Path) -> Path:
    path, text = work / f"{arm.name}.yaml", resolved_yaml(arm.recipe)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path}: the runs here are of another recipe; give another --work folder, or remove this one")
    replace_bytes(path, text.encode())
    return path


def train(runs: Sequence[ArmRun], *, jobs: int, say: Say, after: Callable[[], None]) -> None:
    """Do all runs that are not done, a core each.

    Args:
        runs: In the order of their beginning; a run comes after the one that it starts from.
        jobs: How many at a time.
        say: Takes a line of progress.
        after: Called after every run.

    Raises:
        InputError: a run's input is at fault; those that are going on were asked to save.
        LostProcessError: some failed; the others are done.
        KeyboardInterrupt: the user stopped it; what was begun is saved.
    """
    left = [run for run in runs if not run.is_done]
    failed: list[ArmRun] = []
    say(f"{len(runs)} runs, {len(runs) - len(left)} done already; {jobs} at a time; {_outlook(runs, jobs=jobs)}")

    def ended(run: ArmRun, end: Ended) -> None:
        run.note_end(end)
        if end.was_stopped:
            return
        if end.status == 2:
            raise InputError(f"{run.folder.name}: {last_words(run.log)}")
        if end.status:
            failed.append(run)
            say(f"{run.folder.name} failed, {ending(end.status)}: {last_words(run.log)}")
            return
        say(f"{run.folder.name} done in {duration(run.spent['seconds'])}; {_outlook(runs, jobs=jobs)}")
        after()

    def began(run: ArmRun) -> None:
        run.note_begin()
        lost = "; nobody saw its last process end, so its time stays unknown" if run.spent["lost"] else ""
        say(f"{run.folder.name} begins{lost}")

    Crew[ArmRun](
        words=lambda run: run.command(),
        log=lambda run: run.log,
        ended=ended,
        began=began,
        is_ready=lambda run: run.start is None or run.start.is_done,
        environment=ONE_CORE,
    ).work(left, at_once=jobs)
    if failed:
        names = ", ".join(f"{run.folder.name} (see {run.log})" for run in failed)
        raise LostProcessError(f"{len(failed)} of {len(runs)} runs failed: {names}; the same command tries them again")


def _outlook(runs: Sequence[ArmRun], *, jobs: int) -> str:
    """Say how many runs are left, and how long they take where finished ones tell: of the same arm, else of any."""
    left = [run for run in runs if not run.is_done]
    took: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        if run.is_done:
            for alike in ((run.words[0], run.arm), (run.words[0],)):
                took.setdefault(alike, []).append(run.spent["seconds"])
    known = [took.get((run.words[0], run.arm)) or took.get((run.words[0],)) for run in left]
    expected = sum(statistics.median(seconds) for seconds in known if seconds) / jobs
    return f"{len(left)} left" + (f", about {duration(expected)}" if expected else "")
