"""A run goes on with fewer processes, then with more: same global batches, same losses; one that hangs is named."""

import signal
import time
from pathlib import Path

import pytest

from sortyard.data.order import global_samples
from tests.faults.elastic import check_losses, ended, events, send, start, steps_done, wait_until, write_inputs
from tests.faults.elastic_target import launch, read_samples, statuses
from tests.faults.killing import _wait_until

STEPS, ROWS = 16, 124
QUIET = ("--json", "-q")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("sizes")
    write_inputs(folder)
    alone = launch(folder, ["pretrain", "tiny.yaml", "--out", "alone", *QUIET], size=1)
    assert statuses(alone) == [0], (folder / "log-0.txt").read_text()
    (folder / "samples-0.jsonl").unlink()
    return folder


@pytest.mark.dist
def test_four_processes_then_three_then_four(yard: Path) -> None:
    run = yard / "changing"
    words = ["pretrain", "tiny.yaml", "parallel.dp_shard=4", "--out", "changing", *QUIET]
    for size, stop_at in ((4, 4), (3, 9), (4, STEPS)):
        processes = launch(yard, words, size=size)
        if stop_at < STEPS:
            _wait_until(lambda at=stop_at: steps_done(run) >= at, processes)
            send(run, size - 1, signal.SIGTERM)
            assert statuses(processes) == [143] * size, (yard / "log-0.txt").read_text()
            words = ["resume", "changing", f"parallel.dp_shard={7 - size}", *QUIET]
        else:
            assert statuses(processes) == [0] * size, (yard / "log-0.txt").read_text()
    sizes = [event["changes"]["parallel.dp_shard"] for event in events(run, "recipe")]
    assert sizes == [[4, 3], [3, 4]]

    seen = read_samples(yard)
    assert sorted(seen) == list(range(STEPS))
    for step, samples in seen.items():
        assert sorted(samples) == sorted(global_samples(step, batch_size=16, num_samples=ROWS, seed=0))
    check_losses(run, yard / "alone")


@pytest.mark.dist
def test_a_process_that_hangs_while_it_reads_is_named(yard: Path) -> None:
    words = ["pretrain", "tiny.yaml", "parallel.dp_shard=2", "parallel.timeout_seconds=8", "--out", "hanging", *QUIET]
    processes = launch(yard, words, size=2, hang=(1, 3))
    _wait_until(lambda: steps_done(yard / "hanging") >= 3, processes)
    begun = time.monotonic()
    found = statuses(processes)
    assert time.monotonic() - begun < 8 + 5 + 5  # the last ones: who lost a process lets it speak first
    assert found == [1, 1]
    said = [(yard / f"log-{rank}.txt").read_text() for rank in range(2)]
    hung = "process 1 of 2 has been reading the rows of step 4 for"
    assert hung in said[1] or ("process 1 (number" in said[0] and "is still reading the rows of step 4" in said[0])
    assert (hung in said[1]) != ("is still reading" in said[0])


@pytest.mark.dist
def test_a_process_that_hangs_while_it_evaluates_is_named(yard: Path) -> None:
    settings = ["parallel.dp_shard=2", "parallel.timeout_seconds=8", "pretrain.data.validation_fraction=0.1"]
    words = ["pretrain", "tiny.yaml", *settings, "pretrain.loop.eval_every=3", "--out", "evaluating", *QUIET]
    processes = launch(yard, words, size=2, hangs_in_evaluation=True)
    _wait_until(lambda: steps_done(yard / "evaluating") >= 2, processes)
    begun = time.monotonic()
    assert statuses(processes) == [1, 1]
    assert time.monotonic() - begun < 8 + 5 + 5
    said = (yard / "log-0.txt").read_text()
    assert "process 0 of 2 has been evaluating after step 3 for" in said
    assert "it waits for no other process there" in said


@pytest.mark.slow
@pytest.mark.dist
def test_eight_processes_then_six_then_eight(yard: Path) -> None:
    run = yard / "eight"
    process = start(yard, "pretrain", "tiny.yaml", "parallel.dp_shard=8", "--out", "eight", *QUIET)
    for size, stop_at in ((6, 4), (8, 9)):
        wait_until(lambda at=stop_at: steps_done(run) >= at, process)
        process.terminate()
        assert ended(process)[0] == 143
        process = start(yard, "resume", "eight", f"parallel.dp_shard={size}", *QUIET)
    status, _, err = ended(process)
    assert status == 0, err
    check_losses(run, yard / "alone")
