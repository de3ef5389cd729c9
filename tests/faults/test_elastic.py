"""A run of several processes goes on, or ends with a clear word, whatever becomes of one of them."""

import signal
import time
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.runs.lock import run_lock
from tests.faults.elastic import (
    digest,
    ended,
    events,
    is_saving,
    records,
    send,
    start,
    steps_done,
    wait_until,
    write_inputs,
)

pytestmark = pytest.mark.dist

STEPS = 40
TIMEOUT = 12
WORDS = ("pretrain", "tiny.yaml", f"pretrain.loop.steps={STEPS}", "parallel.dp_shard=2", "--json", "-q")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    write_inputs(folder)
    assert ended(start(folder, *WORDS, "--out", "whole"))[0] == 0
    return folder


def test_a_run_survives_everything_that_befalls_its_processes(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run, to save time: it is killed, killed again, stopped, interrupted and halted, and resumed each time."""
    run = yard / "run"
    times = {}

    # killed, with a restart left; then killed while it saves, with none left
    process = start(yard, *WORDS, "parallel.max_restarts=1", "--out", "run")
    wait_until(lambda: steps_done(run) >= 4 and bool(events(run, "checkpoint")), process)
    send(run, 1, signal.SIGKILL)
    begun = time.monotonic()
    wait_until(lambda: len(events(run, "resume")) == 1, process)
    times["start again"] = time.monotonic() - begun
    wait_until(lambda: steps_done(run) >= 8, process)
    wait_until(lambda: is_saving(run), process)
    send(run, 0, signal.SIGKILL)
    begun = time.monotonic()
    status, said, err = ended(process)
    times["end"] = time.monotonic() - begun
    assert status == said["exit_status"] == 1
    assert "process 1 of 2 was killed (SIGKILL): all start again (1 of 1 times)" in err
    assert said["error"] == "process 0 of 2 was killed (SIGKILL); continue with `sortyard resume run`"
    assert err.count("error: ") == 1
    assert times["end"] < 10

    # a second launch beside it is refused; then SIGTERM to the launcher
    process = start(yard, "resume", "run", "--json", "-q")
    wait_until(lambda: len(events(run, "resume")) == 2 and steps_done(run) >= 13, process)
    with pytest.raises(InputError, match=rf"another process \(number {process.pid}\)"), run_lock(run):
        pass
    process.terminate()
    status, said, _ = ended(process)
    assert (status, said["exit_status"]) == (143, 143)
    assert events(run, "stop")[-1]["signal"] == "SIGTERM"

    # Ctrl-C to one process
    process = start(yard, "resume", "run", "parallel.max_restarts=5", "--json", "-q")
    wait_until(lambda: len(events(run, "resume")) == 3 and steps_done(run) >= 18, process)
    send(run, 1, signal.SIGINT)
    status, _, err = ended(process)
    assert status == 130
    assert err.count("interrupted") == 1
    assert events(run, "stop")[-1]["step"] == steps_done(run) == events(run, "checkpoint")[-1]["step"]

    # one process halts
    words = ("parallel.max_restarts=0", f"parallel.timeout_seconds={TIMEOUT}")
    process = start(yard, "resume", "run", *words, "--json", "-q")
    wait_until(lambda: len(events(run, "resume")) == 4 and steps_done(run) >= 24, process)
    send(run, 1, signal.SIGSTOP)
    begun = time.monotonic()
    status, said, err = ended(process)
    times["hang found, and all ended"] = time.monotonic() - begun
    assert status == 1
    assert "process 1 (number " in err
    assert "has not been heard of for" in err
    assert err.count("error: ") == 2  # who found out, and how it ended
    assert times["hang found, and all ended"] < TIMEOUT + 10

    assert ended(start(yard, "resume", "run", "--json", "-q"))[0] == 0
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert records(run) == records(yard / "whole")
    assert digest(run) == digest(yard / "whole")
    with capsys.disabled():
        print("\n" + ", ".join(f"{what}: {seconds:.1f} s" for what, seconds in times.items()))
