"""`sortyard study twin` and `study ablation` on a small text."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.recipe import recipes_folder
from sortyard.studies.trained.arms import ABLATIONS, BASE, DENSE_ACTIVE, DENSE_TOTAL, OURS
from tests.end_to_end.test_interruption import start, wait_for_lines

TINY = (
    "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.dense_up_to=16",
    "model.moe_intermediate_size=16", "model.intermediate_size=32", "model.max_position_embeddings=64",
    "tokenizer.vocab_size=400", "pretrain.data.sequence_length=64", "pretrain.data.validation_fraction=0.2",
    "pretrain.loop.steps=4", "pretrain.loop.micro_batch_size=2", "pretrain.loop.precision=fp32",
)  # fmt: skip
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "experts", "read", "it")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = (" ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 60)) for number in range(1, 60))
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


@pytest.mark.slow
def test_twins_are_trained_compared_and_not_trained_again(sortyard: Callable, tmp_path: Path, text: Path) -> None:
    words = ("study", "twin", *TINY, "--data", str(text), "--seeds", "2", "--work", "w", "--out", "there", "--json")
    ended = sortyard(*words)
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert set(found["cells"]) == {f"{a}/seed{s}" for a in (OURS, DENSE_ACTIVE, DENSE_TOTAL) for s in (0, 1)}
    assert set(found["summary"]["gains"]) == {DENSE_ACTIVE, DENSE_TOTAL}
    assert found["summary"]["efficiency"]["steps"]["by_seed"].keys() == {"0", "1"}
    assert str(tmp_path) not in (tmp_path / "there" / "twin.json").read_text()
    assert "A sparse model and its dense twins" in (tmp_path / "there" / "twin.html").read_text()
    again = sortyard(*words)
    assert "6 runs, 6 done already" in again.err
    other = sortyard("study", "twin", *TINY, "model.num_experts=4", "--data", str(text), "--work", "w")
    assert other.status == 2
    assert "another recipe" in other.err


@pytest.mark.slow
def test_an_ablation_beside_the_base(sortyard: Callable, tmp_path: Path, text: Path) -> None:
    arm = recipes_folder() / ABLATIONS / "static-gate.yaml"
    words = ("study", "ablation", *TINY, "--arms", str(arm), "--data", str(text), "--seeds", "1", "--out", "there")
    ended = sortyard(*words, "--json")
    assert ended.status == 0, ended.err
    assert set(ended.json["summary"]["arms"]) == {BASE, "static-gate"}
    assert ended.json["summary"]["arms"]["static-gate"]["cost"]["low"] is None  # one seed has no interval


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_owns_to_what_it_does_not_know(tmp_path: Path, text: Path) -> None:
    steps = ("pretrain.loop.steps=200", "pretrain.loop.checkpoint_every=5", "pretrain.loop.log_every=1")
    words = ("study", "twin", *TINY, *steps, "--data", str(text), "--seeds", "1", "--jobs", "1", "--work", "w")
    first = start(tmp_path, *words, "--json")
    folder = tmp_path / "w" / f"{OURS}-seed0"
    wait_for_lines(folder / "metrics.jsonl", 10)
    child = int((folder / ".lock").read_text())
    first.kill()
    first.communicate(timeout=60)
    os.kill(child, signal.SIGKILL)
    second: subprocess.Popen[str] = start(tmp_path, *words, "--json")
    out, said = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert "nobody saw its last process end" in said
    found = json.loads(out.splitlines()[-1])
    assert found["cells"][f"{OURS}/seed0"]["processor_seconds"] == []
    assert found["cells"][f"{OURS}/seed0"]["steps"][-1] == 200
    assert found["summary"]["efficiency"]["processor_seconds"]["by_seed"] == {}
    assert found["summary"]["efficiency"]["steps"]["by_seed"].keys() == {"0"}
