"""Kills training runs at random moments, also in the middle of a save, and counts what that costs.

Used by test_kill.py and by benchmarks/reliability.py.
"""

import hashlib
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sortyard.runs.folder import RunFolder

STEPS = 30  # as in both targets, which are imported in the children only
PATIENCE_SECONDS = 180
TIMES = (
    "tokens_per_second", "tokens_per_second_per_process", "flops_per_second", "mfu", "mfu_dense", "bubble_share",
    "memory_bytes", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    processes: int
    asynchronous: bool

    def __str__(self) -> str:
        return f"{self.processes}-{'async' if self.asynchronous else 'sync'}"


@dataclass
class Tally:
    """What kills came to; all but the first four should be 0."""

    kills: int = 0
    during_a_save: int = 0
    finished_runs: int = 0
    of_one_process_only: int = 0
    checkpoints_lost: int = 0
    checkpoints_damaged: int = 0
    steps_lost: int = 0
    steps_repeated: int = 0
    records_differing: int = 0
    weights_differing: int = 0

    def harm(self) -> dict[str, int]:
        names = ("checkpoints_lost", "checkpoints_damaged", "steps_lost", "steps_repeated")
        return {name: getattr(self, name) for name in (*names, "records_differing", "weights_differing")}


def _train_alone(path: str, asynchronous: bool) -> None:
    from tests.faults.kill_target import run_training  # the model is needed in the child only

    run_training(path, asynchronous)


def _train_together(path: str, rank: int, size: int, rendezvous: str, asynchronous: bool) -> None:
    from tests.faults.peers_target import run_process

    run_process(path, rank, size, rendezvous, asynchronous)


class Killer:
    """Starts, kills and checks the runs of one case.

    Args:
        folder: new; holds the runs.
        case: how many processes, and how they save.
        draw: the randomness.
    """

    def __init__(self, folder: Path, *, case: Case, draw: random.Random):
        self.folder = folder
        self.case = case
        self.draw = draw
        self.tally = Tally()
        self._context = multiprocessing.get_context("forkserver")  # processes that have imported torch already
        self._context.set_forkserver_preload(["sortyard.model.factory", "sortyard.training.loop", "torch.distributed"])
        self._num_starts = 0
        folder.mkdir()

    def left_alone(self) -> Path:
        """A run that nothing interrupts."""
        path = self.folder / "whole"
        self.finish(path)
        return path

    def kill_runs(self, whole: Path, *, kills: int, kills_a_run: int = 3) -> Tally:
        """Kill runs and let each come to its end, until there were so many kills."""
        while self.tally.kills < kills:
            path = self.folder / f"run-{self.tally.finished_runs}"
            for _ in range(kills_a_run):
                self.kill_once(path)
            self.finish(path)
            self.tally.finished_runs += 1
            self._compare(path, whole)
            shutil.rmtree(path)
        return self.tally

    def _start(self, path: Path) -> list[BaseProcess]:
        size = self.case.processes
        if size == 1:
            return [self._process(_train_alone, (str(path), self.case.asynchronous))]
        if not path.exists():
            RunFolder.create(path, recipe="", resolved="steps: 30\n", environment={})
        self._num_starts += 1
        meeting = str(self.folder / f"meeting-{self._num_starts}")
        words = [(str(path), rank, size, meeting, self.case.asynchronous) for rank in range(size)]
        return [self._process(_train_together, each) for each in words]

    def _process(self, target: Callable[..., None], words: tuple[Any, ...]) -> BaseProcess:
        process = self._context.Process(target=target, args=words)  # type: ignore[attr-defined]
        process.start()
        return process  # type: ignore[no-any-return]

    def kill_once(self, path: Path) -> None:
        """Start or resume, kill at a random moment, and see from where the run had gone on.

        The moment is counted in checkpoints rather than in seconds, so that a busy machine does not move it past the
        end. Of several processes sometimes one alone is killed; then the others have to notice and end by themselves,
        if they have found each other: before that, torch waits for minutes.
        """
        newest, num_begun = max(completed_steps(path), default=0), len(begun_at(path))
        processes = self._start(path)
        target = newest + self.draw.randrange(STEPS // 4)
        _wait_until(lambda: max(completed_steps(path), default=0) >= target, processes)
        time.sleep(self.draw.uniform(0, 0.05))
        if 2 * self.tally.during_a_save <= self.tally.kills:
            _wait_until(lambda: is_saving(path), processes)
            time.sleep(self.draw.choice([0, 0, self.draw.uniform(0, 0.01)]))
        begun = len(begun_at(path)) > num_begun
        only_one = self.case.processes > 1 and begun and self.draw.random() < 0.3
        for process in [self.draw.choice(processes)] if only_one else processes:
            process.kill()
        was_saving = is_saving(path)
        for process in processes:
            process.join(PATIENCE_SECONDS)
            assert process.exitcode is not None, "a process hangs after another one is gone"
        if not any(process.exitcode == -9 for process in processes):
            return
        self.tally.kills += 1
        self.tally.during_a_save += was_saving
        self.tally.of_one_process_only += only_one
        self._check_begin(path, newest=newest, num_begun=num_begun)

    def finish(self, path: Path) -> None:
        newest, num_begun = max(completed_steps(path), default=0), len(begun_at(path))
        processes = self._start(path)
        for process in processes:
            process.join(PATIENCE_SECONDS)
            assert process.exitcode == 0, f"exit status {process.exitcode}"
        if newest < STEPS:
            self._check_begin(path, newest=newest, num_begun=num_begun)

    def _check_begin(self, path: Path, *, newest: int, num_begun: int) -> None:
        self.tally.checkpoints_lost += begun_at(path)[num_begun:] not in ([], [newest])

    def _compare(self, path: Path, whole: Path) -> None:
        run, other = RunFolder(path), RunFolder(whole)
        steps = [record["step"] for record in run.read_metrics("train")]
        self.tally.steps_lost += len(set(range(1, STEPS + 1)) - set(steps))
        self.tally.steps_repeated += len(steps) - len(set(steps))
        self.tally.records_differing += without_times(run) != without_times(other)
        self.tally.weights_differing += digest(path) != digest(whole)
        warnings = [event["message"] for event in run.read_events() if event["event"] == "warning"]
        self.tally.checkpoints_damaged += sum("is not used" in message for message in warnings)


def is_saving(path: Path) -> bool:
    return any((path / "checkpoints").glob(".aside-step-*"))


def completed_steps(path: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in (path / "checkpoints").glob("step-*")]


def begun_at(path: Path) -> list[int]:
    """The steps at which the run was started and resumed."""
    events = RunFolder(path).read_events()
    return [event["step"] for event in events if event["event"] in ("start", "resume")]


def digest(path: Path) -> str:
    return hashlib.sha256((path / "model" / "model.safetensors").read_bytes()).hexdigest()


def without_times(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in run.read_metrics()]


def _wait_until(condition: Callable[[], bool], processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while all(process.is_alive() for process in processes) and not condition():
        assert time.monotonic() < deadline, "the training hangs"
        time.sleep(0.0005)
