"""Ctrl-C, then `resume`: the same model as without the interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
STEPS = 60


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sortyard", *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise TimeoutError(path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_resumed_run_equals_an_uninterrupted_one(yard: Path, number: signal.Signals, status: int) -> None:
    words = ("pretrain", "tiny.yaml", f"pretrain.loop.steps={STEPS}", "pretrain.loop.eval_every=0", "--json", "-q")
    whole, cut = f"runs/whole-{number.name}", f"runs/cut-{number.name}"
    first = start(yard, *words, "--out", whole)
    first.communicate(timeout=300)
    assert first.returncode == 0
    second = start(yard, *words, "--out", cut)
    wait_for_lines(yard / cut / "metrics.jsonl", 3)
    second.send_signal(number)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == status
    assert json.loads(out.splitlines()[-1])["exit_status"] == status
    assert not (yard / cut / "model" / "model.safetensors").exists()
    third = start(yard, "resume", cut, "--json", "-q")
    out, _ = third.communicate(timeout=300)
    assert third.returncode == 0
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
    weights = "model/model.safetensors"
    assert (yard / cut / weights).read_bytes() == (yard / whole / weights).read_bytes()
