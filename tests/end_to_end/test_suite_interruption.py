"""Ctrl-C in a suite: its runs save what they have and end with it, and the same command goes on."""

import json
import signal
from pathlib import Path

import pytest

from tests.end_to_end.test_interruption import start, wait_for_lines

STEPS = 400


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was_stopped(yard: Path) -> None:
    (yard / "glue").mkdir()
    rows = [{"sentence1": f"the cat {i}", "sentence2": "the dog sat", "label": i % 2} for i in range(24)]
    for split in ("train", "dev"):
        (yard / f"glue/rte_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["finetune.loop.epochs=null", f"finetune.loop.steps={STEPS}", "finetune.task.max_length=32"]
    words = ["eval", "runs/tiny-0001", *settings, "--suite", "glue", "--data", "glue", "--tasks", "rte"]
    words += ["--seeds", "2", "--jobs", "2", "--out", "suite", "--json"]
    first = start(yard, *words)
    runs = [yard / f"suite/rte/seed-{seed}" for seed in range(2)]
    for run in runs:
        wait_for_lines(run / "metrics.jsonl", 2)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "the same command goes on" in said
    reached = []
    for run in runs:
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        reached += [event["step"] for event in events if event["event"] == "stop"]
    assert len(reached) == 2
    assert all(0 < step < STEPS for step in reached)

    second = start(yard, *words)
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    rte = json.loads(out.splitlines()[-1])["tasks"]["rte"]
    assert [seed["steps"] for seed in rte["seeds"]] == [STEPS, STEPS]
    for run in runs:
        events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
        assert "resume" in events
