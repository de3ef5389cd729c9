"""`adapt`: an upcycled folder in, a run whose model has settled out; interrupted or not, the same bits."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sortyard.model.heads import SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.model.modeling import SortyardModel
from sortyard.runs.folder import RunFolder
from sortyard.training.step import Stepper
from tests.cli.adapting import FEW
from tests.cli.test_upcycle import write_task

FIGURES = {"loss", "relative_error", "token_cosine", "utilisation"}


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_an_upcycled_folder_follows_its_dense_self(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    sparse()
    ended = sortyard("adapt", "sparse", *FEW, "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert (found["run"], found["objective"], found["teacher"]) == ("runs/adapt-0001", "distil", "dense")
    assert (found["steps"], found["reason"], found["sequence_length"]) == (3, "steps", 48)
    assert set(found["before"]) == set(found["after"]) == FIGURES | {"masked_lm_loss", "accuracy"}
    assert 0.01 < found["before"]["relative_error"] != found["after"]["relative_error"]
    run = tmp_path / "runs" / "adapt-0001"
    assert json.loads((run / "job.json").read_text()) == {
        "verb": "adapt",
        "start": str(tmp_path / "sparse"),
        "launch": None,
        "examples": None,
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in records if record["kind"] == "eval"]
    assert [record["step"] for record in evals] == [0, 3]
    assert evals[0]["relative_error"] == found["before"]["relative_error"]
    model, info = SortyardForMaskedLM.from_pretrained(run / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.attention == "bucket"
    assert AutoTokenizer.from_pretrained(run / "model").model_max_length == 48


def test_report_and_card_say_what_was_done(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    sparse()
    ended = sortyard("adapt", "sparse", *FEW)
    assert ended.status == 0
    assert "relative error" in ended.out
    assert " -> " in ended.out
    assert "% sparse:" in ended.out
    assert "finetune --task TASK --data FOLDER --from runs/adapt-0001 finetune.task.max_length=48" in ended.out
    run = tmp_path / "runs" / "adapt-0001"
    page = (run / "report.html").read_text()
    assert "Adapting run" in page
    assert "its teacher" in page
    card = (run / "README.md").read_text()
    assert "adapted to text" in card
    assert "Adapted on: text.txt" in card
    assert card == (run / "model" / "README.md").read_text()


@pytest.mark.parametrize("objective", ["masked_lm", "both"])
def test_objectives_with_labels(objective: str, sparse: Callable, sortyard: Callable) -> None:
    sparse()
    ended = sortyard("adapt", "sparse", "--objective", objective, *FEW, "--json")
    assert (ended.status, ended.json["objective"]) == (0, objective)
    before = ended.json["before"]
    distance = 0.0 if objective == "masked_lm" else before["loss"] - before["masked_lm_loss"]
    assert before["loss"] == pytest.approx(before["masked_lm_loss"] + distance)
    assert (distance > 1e-4) == (objective == "both")


def test_a_folder_that_is_not_upcycled_predicts_masked_tokens(sparse: Callable, sortyard: Callable) -> None:
    (sparse() / "upcycling.json").unlink()
    assert sortyard("adapt", "sparse", *FEW, "--json").json["objective"] == "masked_lm"


def test_the_head_is_kept_and_the_run_can_be_fine_tuned(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    folder = sparse(head="sequence_classification")
    assert sortyard("adapt", "sparse", *FEW, "--out", "adapted").status == 0
    models = [SortyardForSequenceClassification.from_pretrained(f) for f in (folder, tmp_path / "adapted" / "model")]
    for name in ("classifier.weight", "head.dense.weight"):
        assert torch.equal(*(model.get_parameter(name) for model in models))
    moved = "model.encoder.layers.0.attention.q_proj.weight"
    assert not torch.equal(*(model.get_parameter(moved) for model in models))
    write_task(tmp_path)
    tuned = sortyard("finetune", "tiny.yaml", "--from", "adapted", "--out", "tuned")
    assert tuned.status == 0, tuned.err


def test_a_classifier_that_was_never_trained_is_not_written(
    sparse: Callable, sortyard: Callable, tmp_path: Path
) -> None:
    sparse("sparse", "--head", "sequence_classification", head="base")
    ended = sortyard("adapt", "sparse", *FEW, "--out", "adapted", "--json")
    assert ended.status == 0, ended.err
    _, found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapted/model", output_loading_info=True)
    assert set(found["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_a_model_without_a_head(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    sparse(head="base")
    ended = sortyard("adapt", "sparse", *FEW, "--out", "adapted", "--json", "adapt.distillation.layers=all")
    assert (ended.status, set(ended.json["after"])) == (0, FIGURES)
    _, found = SortyardModel.from_pretrained(tmp_path / "adapted/model", output_loading_info=True)
    assert not found["missing_keys"]
    card = (tmp_path / "adapted/README.md").read_text()
    assert "parameters, " in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/model", "adapted/model")
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["last_hidden_state"].shape[-1] == 32


@pytest.mark.parametrize("head", ["base", "masked_lm"])
def test_the_routing_of_a_run_and_its_checkpoints(head: str, sparse: Callable, sortyard: Callable) -> None:
    sparse(head=head)
    assert sortyard("adapt", "sparse", *FEW, "--out", "adapted", "adapt.loop.checkpoint_every=1").status == 0
    ended = sortyard("eval", "adapted", "--routing", "--json")
    assert ended.status == 0, ended.err
    assert [domain["name"] for domain in ended.json["domains"]] == ["held-out rows"]
    assert not ended.json["masked"]
    points = ended.json["saturation"]["checkpoints"]
    assert [point["step"] for point in points] == [2, 3]
    assert set(points[-1]["layers"]) == {1.0}


def test_a_loss_that_does_not_fall_is_noted(sparse: Callable, sortyard: Callable) -> None:
    sparse()
    spoilt = sortyard("adapt", "sparse", *FEW, "adapt.optimizer.lr=0.3")
    assert "note: the held-out loss did not fall" in spoilt.out
    assert "3 steps may be too few" in spoilt.out
    steady = ["adapt.loop.accumulation_steps=4", "adapt.optimizer.lr=1e-3"]
    better = sortyard("adapt", "sparse", *FEW, "--steps", "30", *steady, "--json").json
    assert better["after"]["loss"] < better["before"]["loss"]
    assert better["notes"] == []


def test_another_folder_as_teacher(sparse: Callable, sortyard: Callable) -> None:
    sparse()
    sparse("teacher", "--num-experts", "1", "--attention", "dense")
    own = sortyard("adapt", "sparse", *FEW, "--json").json
    other = sortyard("adapt", "sparse", "--teacher", "teacher", *FEW, "--json").json
    assert Path(other["teacher"]).name == "teacher"
    for name in FIGURES:  # both are the dense checkpoint
        assert other["before"][name] == pytest.approx(own["before"][name], rel=1e-3)


def interrupt(at: int) -> Callable[..., Any]:
    """A step that gets a Ctrl-C while it works."""
    take = Stepper.take

    def interrupted(self: Stepper, batches: Any, *, step: int) -> Any:
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, batches, step=step)

    return interrupted


@pytest.mark.parametrize("objective", ["distil", "both"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    objective: str, sparse: Callable, sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse()
    words = ["adapt", "sparse", "--objective", objective, *FEW, "--steps", "6", "adapt.keep_dropout=true"]
    whole = sortyard(*words, "--out", "whole", "--json")
    assert whole.status == 0
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "take", interrupt(2))
        assert sortyard(*words, "--out", "cut").status == 130
    assert not (tmp_path / "cut" / "model" / "model.safetensors").exists()
    again = sortyard("resume", "cut", "-q", "--json")
    assert again.status == 0, again.err
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    for name in ("before", "after"):
        assert again.json[name] == whole.json[name]
    told = [sortyard("resume", run, "-q").out for run in ("cut", "whole")]  # both are finished
    figures = [[line for line in text.splitlines() if line.startswith("  ")] for text in told]
    assert len(figures[0]) == len(whole.json["before"])
    assert figures[0] == figures[1]


def test_minutes_bound_the_time_and_the_schedule(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    sparse()
    words = ["--data", "text.txt", "--minutes", "0.02", "adapt.loop.log_every=1"]
    ended = sortyard("adapt", "sparse", *words, "--json", "-q")
    assert ended.status == 0, ended.err
    run = tmp_path / "runs/adapt-0001"
    *before, last = (record["seconds"] for record in RunFolder.open(run).read_metrics("train"))
    assert all(seconds < 1.2 for seconds in before)  # no step begins after the time is up
    assert ended.json["reason"] == "steps" or (ended.json["reason"] == "max_seconds" and last >= 1.2)
    resolved = (run / "resolved.yaml").read_text()
    assert "max_seconds: 1.2" in resolved
    assert "steps: 100000" not in resolved
