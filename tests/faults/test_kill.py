"""SIGKILL at any moment, also in the middle of a save, costs no finished checkpoint and changes no bit."""

import hashlib
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sortyard.training.run_folder import RunFolder
from tests.training.tiny import without_times

NUM_KILLS = int(os.environ.get("SORTYARD_KILLS", "4"))
STEPS = 30  # as in kill_target, which is imported in the children only
PATIENCE_SECONDS = 120


@dataclass
class Tally:
    kills: int = 0
    during_a_save: int = 0
    finished_runs: int = 0


@pytest.fixture(scope="module")
def processes():
    """Processes that start with torch and the model already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sortyard.model.factory", "sortyard.training.loop"])
    return context


def train_in_child(path: str) -> None:
    from tests.faults.kill_target import run_training  # the model is needed in the child only

    run_training(path)


def start(processes, path):
    process = processes.Process(target=train_in_child, args=(str(path),))
    process.start()
    return process


def is_saving(path: Path) -> bool:
    return any((path / "checkpoints").glob(".aside-step-*"))


def completed_steps(path: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in (path / "checkpoints").glob("step-*")]


def wait_until(condition, process) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.is_alive() and not condition():
        assert time.monotonic() < deadline, "the training hangs"
        time.sleep(0.0005)


def kill_once(processes, path: Path, *, draw: random.Random, in_a_save: bool, tally: Tally) -> None:
    """Start or resume the run, kill it at a random moment, and check that it had resumed from the newest checkpoint.

    The moment is counted in checkpoints rather than in seconds, so that a busy machine does not move it past the end.
    """
    newest, num_begun = max(completed_steps(path), default=0), len(begun_at(path))
    process = start(processes, path)
    target = newest + draw.randrange(STEPS // 4)
    wait_until(lambda: max(completed_steps(path), default=0) >= target, process)
    time.sleep(draw.uniform(0, 0.05))
    if in_a_save:
        wait_until(lambda: is_saving(path), process)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return
    assert process.exitcode == -9
    tally.kills += 1
    tally.during_a_save += is_saving(path)
    assert begun_at(path)[num_begun:] in ([], [newest]), "a finished checkpoint was lost"


def begun_at(path: Path) -> list[int]:
    """The steps at which the run was started and resumed."""
    events = RunFolder(path).read_events()
    assert not [event for event in events if event["event"] == "warning"]
    return [event["step"] for event in events if event["event"] in ("start", "resume")]


def finish(processes, path: Path) -> None:
    newest = max(completed_steps(path), default=0)
    process = start(processes, path)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0
    was_over = newest == STEPS
    assert was_over or begun_at(path)[-1] == newest, "a finished checkpoint was lost"


def digest(path: Path) -> str:
    return hashlib.sha256((path / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_left_alone(tmp_path, processes, capsys):
    whole = tmp_path / "whole"
    finish(processes, whole)
    tally, draw = Tally(), random.Random(0)
    while tally.kills < NUM_KILLS:
        path = tmp_path / f"run-{tally.finished_runs}"
        for _ in range(3):
            in_a_save = 2 * tally.during_a_save <= tally.kills
            kill_once(processes, path, draw=draw, in_a_save=in_a_save, tally=tally)
        finish(processes, path)
        tally.finished_runs += 1
        assert digest(path) == digest(whole)
        assert without_times(RunFolder(path).read_metrics()) == without_times(RunFolder(whole).read_metrics())

    with capsys.disabled():
        print(f"\n{tally}: all bit-identical to {digest(whole)[:16]}")
    assert 4 * tally.during_a_save >= tally.kills
