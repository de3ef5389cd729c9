"""Many kills of any process at any moment, and torchrun in place of our own launcher."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.runs.lock import run_lock
from tests.faults.elastic import (
    ROOT,
    digest,
    ended,
    events,
    kill_often,
    records,
    send,
    start,
    steps_done,
    wait_until,
    write_inputs,
)

pytestmark = [pytest.mark.dist, pytest.mark.slow]

NUM_KILLS = int(os.environ.get("SORTYARD_KILLS", "6"))
STEPS = 60
WORDS = ("pretrain", "tiny.yaml", f"pretrain.loop.steps={STEPS}", "parallel.dp_shard=2", "-q", "--out")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_inputs(folder)
    assert ended(start(folder, *WORDS, "whole", "--json"))[0] == 0
    return folder


def check_equal(run: Path, whole: Path) -> None:
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert records(run) == records(whole)
    assert digest(run) == digest(whole)


@pytest.mark.parametrize("layout", [{"dp_shard": 2}, {"dp_shard": 2, "tp": 2}], ids=["dp2", "dp2-tp2"])
def test_random_kills_change_no_bit(tmp_path: Path, layout: dict[str, int]) -> None:
    found = kill_often(tmp_path, layout, kills=NUM_KILLS, seed=0)
    assert found.harm() == dict.fromkeys(found.harm(), 0)
    assert found.kills == NUM_KILLS
    assert found.during_a_save >= NUM_KILLS // 4


def torchrun(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables
    )
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_torchrun_starts_again_and_stops(yard: Path) -> None:
    run = yard / "torchrun"
    process = torchrun(
        yard, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "sortyard", *WORDS, "torchrun"
    )
    wait_until(lambda: steps_done(run) >= 4 and bool(events(run, "checkpoint")), process)
    send(run, 0, signal.SIGKILL)
    wait_until(lambda: len(events(run, "resume")) == 1 and steps_done(run) >= 12, process)
    process.terminate()
    begun = time.monotonic()
    process.communicate(timeout=120)
    assert time.monotonic() - begun < 25  # it need not have killed anybody
    assert events(run, "stop")[-1]["signal"] == "SIGTERM"
    assert events(run, "stop")[-1]["step"] == steps_done(run)
    assert ended(start(yard, "resume", "torchrun", "-q", "--json"))[0] == 0
    check_equal(run, yard / "whole")


def torchruns_of_two_machines(folder: Path, *words: str, **variables: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    own = (
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "seven",
    )
    return [
        torchrun(folder, *own, "--rdzv-endpoint", endpoint, "-m", "sortyard", *words, **variables) for _ in range(2)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_torchruns_of_two_machines_start_again(yard: Path, rank: int) -> None:
    """Each counts its starts by itself, so that the first process may come by its folder with a count of 0."""
    run = yard / f"machines-{rank}"
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    processes = torchruns_of_two_machines(yard, *WORDS, run.name, **fresh)
    wait_until(lambda: steps_done(run) >= 4 and bool(events(run, "checkpoint")), processes[0])
    send(run, rank, signal.SIGKILL)
    errs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errs
    assert events(run, "resume")
    check_equal(run, yard / "whole")


def test_processes_outlive_a_killed_launcher_and_keep_the_folder(yard: Path) -> None:
    run = yard / "orphans"
    process = start(yard, *WORDS, "orphans", "--json")
    wait_until(lambda: steps_done(run) >= 2, process)
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="is working on this run"), run_lock(run):
        pass
    send(run, 1, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while not events(run, "stop"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.communicate()  # which ends when the last of its processes has
    assert ended(start(yard, "resume", "orphans", "-q", "--json"))[0] == 0
    check_equal(run, yard / "whole")
