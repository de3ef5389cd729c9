"""Runs of several processes on one machine, started as `sortyard` does it, and what happens to them."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from sortyard.runs.folder import RunFolder
from tests.faults.killing import TIMES, Tally

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300

RECIPE = """
extends: small
tokenizer: {vocab_size: 300}
model:
  hidden_size: 16
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 32
  max_position_embeddings: 32
  bucket_size: 8
  query_chunk: 16
  near_buckets: 1
  local_window: 4
  dense_up_to: 32
  num_experts: 4
  num_expert_groups: 2
  num_groups_per_tok: 1
  moe_intermediate_size: 16
pretrain:
  data: {path: text.txt, hub_config: null, sequence_length: 32, validation_fraction: 0}
  loop: {steps: 16, micro_batch_size: 8, accumulation_steps: 2, log_every: 1, eval_every: 0, checkpoint_every: 2,
    async_checkpoints: true, num_threads: 1, device: cpu, tensorboard: false}
"""


def write_inputs(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(RECIPE)
    words = "the cat dog sat on a mat and then ran away from big small red house tree bird song night day".split()  # noqa: SIM905
    texts = [" ".join(words[(7 * text + 3 * at + at * at) % len(words)] for at in range(60)) for text in range(60)]
    (folder / "text.txt").write_text("\n\n\n".join(texts))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sortyard", *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last line of stdout as JSON, stderr."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    (line,) = out.splitlines()  # JSON, and nothing else
    return process.returncode, json.loads(line), err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.002)


def steps_done(run: Path) -> int:
    """The newest step in the records."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((int(found[1]) for line in lines if (found := re.search(r'"step": (\d+)', line))), default=0)


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".aside-step-*"))


def number_of(run: Path, rank: int) -> int:
    """The operating system's number of a process of a run, by its sign of life."""
    return int((run / "processes" / f"process-{rank}").read_text().split("\n")[1].split()[0])


def send(run: Path, rank: int, number: signal.Signals) -> None:
    os.kill(number_of(run, rank), number)


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = RunFolder(run).read_metrics("train")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(run).read_events() if event["event"] == kind]


def check_losses(run: Path, alone: Path) -> None:
    """That a run has the steps, tokens and losses of another one; in float32 the order of sums shows in time."""
    found, wanted = records(run), records(alone)
    assert [record["step"] for record in found] == list(range(1, len(wanted) + 1))
    apart = [abs(one["loss"] - other["loss"]) / other["loss"] for one, other in zip(found, wanted, strict=True)]
    assert max(apart[:4]) <= 1e-5
    assert max(apart) <= 1e-4
    assert [record["tokens"] for record in found] == [record["tokens"] for record in wanted]


def kill_often(folder: Path, layout: Mapping[str, int], *, kills: int, seed: int) -> Tally:
    """Kill one process after another of a run that starts again, half of them during a save, beside a run left alone.

    Damaged checkpoints are not looked for: one that was lost to damage counts as lost.

    Args:
        folder: where both work.
        layout: sizes of its dims.
        kills: how many.
        seed: of the moments, and of who is killed.
    """
    steps = 12 * kills  # of which each kill costs some
    write_inputs(folder)
    sizes = [f"parallel.{name}={size}" for name, size in layout.items()]
    words = ("pretrain", "tiny.yaml", f"pretrain.loop.steps={steps}", *sizes, "-q", "--json", "--out")
    whole, run = folder / "whole", folder / "killed"
    status, _, err = ended(start(folder, *words, "whole"))
    assert status == 0, err
    draw, tally = random.Random(seed), Tally()
    process = start(folder, *words, "killed", f"parallel.max_restarts={kills}")
    for kill in range(kills):
        wait_until(lambda kill=kill: len(events(run, "start")) + len(events(run, "resume")) == kill + 1, process)
        newest = max((event["step"] for event in events(run, "checkpoint")), default=0)
        target = newest + draw.randrange(8)
        wait_until(lambda target=target: steps_done(run) >= target, process)
        if draw.random() < 0.5:
            wait_until(lambda: is_saving(run), process)
        tally.during_a_save += is_saving(run)
        send(run, draw.randrange(prod(layout.values())), signal.SIGKILL)
    status, _, err = ended(process)
    assert status == 0, err
    tally.kills = err.count("was killed (SIGKILL): all start again")
    tally.finished_runs = 1
    # Tensor parallelism exchanges something for every target, and it is counted in the first step after a start.
    counted_anew = {"all_reduce_bytes"} if layout.get("tp", 1) > 1 else set()
    found, wanted = (
        [{name: value for name, value in record.items() if name not in counted_anew} for record in records(each)]
        for each in (run, whole)
    )
    done = [record["step"] for record in found]
    tally.steps_lost = len(set(range(1, steps + 1)) - set(done))
    tally.steps_repeated = len(done) - len(set(done))
    tally.checkpoints_lost = _checkpoints_lost(run)
    tally.records_differing = sum(one != other for one, other in zip(found, wanted, strict=False))
    tally.weights_differing = int(digest(run) != digest(whole))
    return tally


def _checkpoints_lost(run: Path) -> int:
    """How often a run went on from before a checkpoint that was finished."""
    newest = lost = 0
    for event in RunFolder(run).read_events():
        if event["event"] == "checkpoint":
            newest = max(newest, event["step"])
        elif event["event"] == "resume":
            lost += event["step"] < newest
    return lost
