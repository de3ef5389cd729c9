"""Models whose layers two processes share, beside the same models in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tensor_parallel_worker import CASES

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found; they run once for all tests, as starting them takes the time."""
    folder = tmp_path_factory.mktemp("slices")
    words = [sys.executable, "-m", "tests.interop.tensor_parallel_worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    logs = [folder / f"log-{rank}.txt" for rank in range(2)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                processes.append(
                    subprocess.Popen([*words, str(rank)], cwd=ROOT, env=environment, stdout=out, stderr=out)
                )
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    assert not any("match nothing" in log.read_text() for log in logs)  # rules of the plan without effect
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_one_process(reports, name):
    for report in reports:
        found = report[name]
        assert found["largest"] > 1
        assert found["torch.float32"] < 1e-5
        assert found["torch.float64"] < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_each_process_has_its_heads_and_they_choose_the_same_keys(reports, name):
    for report in reports:
        assert report[name]["attentions"] < 1e-12


def test_models_are_on_both_sides_of_the_crossover(reports):
    sparse = {name for name in CASES if reports[0][name]["sparsity"] > 0.1}
    assert sparse == {name for name, case in CASES.items() if case.length > 40}


@pytest.mark.parametrize("name", CASES)
def test_every_process_has_the_gradients_of_one_process(reports, name):
    for report in reports:
        wrong = {weight: gap for weight, gap in report[name]["gradients"].items() if not gap < 1e-12}
        assert wrong == {}


def test_training_goes_the_same_way(reports):
    for report in reports:
        losses, wanted = report["losses"]
        assert losses == pytest.approx(wanted, rel=1e-9)
        assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", CASES)
def test_weights_are_cut_in_half(reports, name):
    fields = CASES[name].fields
    parts = {"word_embeddings", "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}
    parts.add("gate_up_proj" if fields.get("gated_ffn", True) else "up_proj")
    for report in reports:
        shares = report[name]["local_shares"]
        for part in parts:
            layers = [weight for weight in shares if part in weight.split(".")]
            assert len(layers) >= (1 if part == "word_embeddings" else 2)
        even = {w: share for w, share in shares.items() if "embeddings" not in w and "decoder" not in w}
        biases = {w: even.pop(w) for w in list(even) if w.endswith(("o_proj.bias", "down_proj.bias"))}
        assert set(even.values()) == {0.5}
        assert set(biases.values()) <= {1.0}  # added once, to the sum


@pytest.mark.parametrize("name", CASES)
def test_slices_save_the_whole_model(reports, name):
    for report in reports:
        assert report[name]["saved_otherwise"] == []


def test_what_cannot_be_cut_is_named(reports):
    for report in reports:
        assert report["refusal"].startswith("tp_size is 2, which does not divide num_attention_heads 1; ")
