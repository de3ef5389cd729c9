"""SIGKILL at any moment, also in the middle of a save, costs no finished checkpoint and changes no bit."""

import os
import random

import pytest

from tests.faults.killing import Case, Killer, digest

NUM_KILLS = int(os.environ.get("SORTYARD_KILLS", "4"))
CASES = [Case(processes, asynchronous=asynchronous) for processes in (1, 4) for asynchronous in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_runs_end_like_one_that_was_left_alone(tmp_path, capsys, case):
    killer = Killer(tmp_path / "runs", case=case, draw=random.Random(0))
    whole = killer.left_alone()
    tally = killer.kill_runs(whole, kills=-(-NUM_KILLS // len(CASES)))
    with capsys.disabled():
        print(f"\n{tally}: all bit-identical to {digest(whole)[:16]}")
    assert not any(tally.harm().values())


@pytest.mark.dist
@pytest.mark.parametrize("processes", [2, 3])
def test_a_run_may_go_on_with_another_number_of_processes(tmp_path, processes):
    whole = Killer(tmp_path / "whole", case=Case(4, asynchronous=False), draw=random.Random(0)).left_alone()
    first = Killer(tmp_path / "runs", case=Case(processes, asynchronous=True), draw=random.Random(0))
    first.kill_once(tmp_path / "runs" / "run")
    second = Killer(tmp_path / "more", case=Case(4, asynchronous=False), draw=random.Random(0))
    second.finish(tmp_path / "runs" / "run")
    assert not any(second.tally.harm().values())
    assert digest(tmp_path / "runs" / "run") == digest(whole)
