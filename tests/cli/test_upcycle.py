"""`upcycle`: a checkpoint's folder in, an ordinary model folder out, which the other verbs take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from sortyard.interop import Predictor
from sortyard.interop.upcycling import checking
from sortyard.model.heads import SortyardForMaskedLM, SortyardForSequenceClassification
from tests.interop.dense_families import make_batch, random_model
from tests.interop.test_upcycling_folders import tokenizer_with_mask

RECIPE = """
extends: small
finetune:
  task: {name: custom, data: task.jsonl, max_length: 24}
  loop: {steps: 3, micro_batch_size: 8, log_every: 1, eval_every: 3, checkpoint_every: 3}
"""
TEXTS = ["w1 w2 w3 w4", "w5 w6 w7 w8 w9 w10 w11", "w12"]


def write_dense(folder: Path, *, family: str = "bert", head: str = "masked_lm") -> PreTrainedModel:
    model = random_model(family, head)
    model.save_pretrained(folder)
    tokenizer_with_mask().save_pretrained(folder)
    return model


def write_task(folder: Path) -> None:
    rows = [{"text": f"w{i % 40} w{i % 7} w{50 + i % 2}", "label": ("good", "bad")[i % 2]} for i in range(48)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(RECIPE)


def logits(model: PreTrainedModel, config: Any) -> torch.Tensor:
    batch = make_batch(config)
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found[batch["attention_mask"].bool()] if found.shape[:2] == batch["input_ids"].shape else found


def test_a_folder_of_the_same_function(sortyard: Callable, tmp_path: Path) -> None:
    dense = write_dense(tmp_path / "dense")
    ended = sortyard("upcycle", "dense", "--num-experts", "6", "--num-groups", "3", "--out", "sparse", "--json")
    assert (ended.status, ended.json["is_exact"], ended.json["num_experts"]) == (0, True, 6)
    assert ended.json["largest_difference"] < 1e-5
    assert (ended.json["architecture"], ended.json["unused"]) == ("SortyardForMaskedLM", [])
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "sparse").eval()
    assert type(model) is SortyardForMaskedLM
    torch.testing.assert_close(logits(model, dense.config), logits(dense, dense.config), rtol=0, atol=1e-5)
    account = json.loads((tmp_path / "sparse" / "upcycling.json").read_text())
    assert account["mapped"]["encoder.layer.0.output.dense.weight"] == ["model.encoder.layers.0.ffn.down_proj"]
    ids = [AutoTokenizer.from_pretrained(tmp_path / name)(TEXTS).input_ids for name in ("dense", "sparse")]
    assert ids[0] == ids[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "sparse"]


def test_options_reach_the_configuration(sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense")
    words = "--experts-from copies --attention dense --max-positions 64 --positions keep --seed 3 num_experts_per_tok=1"
    ended = sortyard("upcycle", "dense", *words.split(), "bucket_size=32", "--out", "sparse", "--json")
    assert ended.status == 0
    config = AutoModel.from_pretrained(tmp_path / "sparse").config
    assert (config.attention, config.bucket_size, config.num_experts_per_tok) == ("dense", 32, 1)
    assert config.max_position_embeddings == 64
    assert AutoTokenizer.from_pretrained(tmp_path / "sparse").model_max_length == 64


@pytest.mark.parametrize("head", ["masked_lm", "base"])
def test_the_folder_can_be_fine_tuned_scored_and_used(head: str, sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", head=head)
    write_task(tmp_path)
    assert sortyard("upcycle", "dense", "--out", "sparse").status == 0
    tuned = sortyard("finetune", "tiny.yaml", "--from", "sparse", "--out", "tuned", "--json")
    assert tuned.status == 0, tuned.err
    assert sortyard("eval", "tuned", "--json").status == 0
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    predicted = sortyard("predict", "tuned", "--input", "in.txt")
    assert predicted.status == 0
    assert {json.loads(line)["label"] for line in predicted.out.splitlines()} <= {"good", "bad"}


def test_a_classifier_predicts_what_the_dense_one_does(sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", head="sequence_classification")
    assert sortyard("upcycle", "dense", "--out", "sparse").status == 0
    found = [list(Predictor.from_pretrained(tmp_path / name).predict(TEXTS)) for name in ("dense", "sparse")]
    for dense, sparse in zip(*found, strict=True):
        assert dense.label == sparse.label
        assert sparse.logits == pytest.approx(dense.logits, abs=1e-5)


def test_a_new_classifier_is_not_taken_for_a_trained_one(sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", head="base")
    assert sortyard("upcycle", "dense", "--head", "sequence_classification", "--out", "sparse").status == 0
    refused = sortyard("predict", "sparse", "--json")
    assert refused.status == 2
    assert "classifier" in refused.err
    model, found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse", output_loading_info=True)
    assert type(model) is SortyardForSequenceClassification
    assert set(found["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def test_no_token_types_for_a_model_without(sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", family="distilbert", head="sequence_classification")
    assert sortyard("upcycle", "dense", "--out", "sparse").status == 0
    predictor = Predictor.from_pretrained(tmp_path / "sparse")
    assert "token_type_ids" not in predictor.tokenizer("w1", "w2")
    assert len(list(predictor.predict([("w1 w2", "w3")]))) == 1


def test_the_account_reads_well(sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", head="base")
    ended = sortyard("upcycle", "dense")
    assert ended.status == 0
    for words in (
        "runs/dense-upcycled-0001: SortyardModel, 8 experts in each of 3 layers",
        "2 unused (pooler.dense",
        "--head sequence_classification keeps the pooler",
        "the same up to",
        "sortyard finetune",
    ):
        assert words in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "no such folder"),
        (["empty"], "no config.json"),
        (["dense", "--num-experts", "9"], "cannot be dealt evenly"),
        (["dense", "--num-groups", "5", "--num-experts", "10"], "equal shards"),
        (["dense", "--experts-from", "shards", "bucket_sise=3"], "did you mean bucket_size"),
        (["dense", "many experts"], "must look like"),
        (["dense", "--max-positions", "16"], "less than the checkpoint's 48"),
        (["dense", "--out", "full"], "exists and is not empty"),
        (["bare"], "has no tokenizer"),
    ],
    ids=str,
)
def test_unusable_input_writes_nothing(words: list[str], message: str, sortyard: Callable, tmp_path: Path) -> None:
    write_dense(tmp_path / "dense")
    random_model("bert", "base").save_pretrained(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    ended = sortyard("upcycle", *words, "--json")
    assert ended.status == 2
    assert message in ended.json["error"]
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_is_not_the_same_is_not_written(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dense(tmp_path / "dense")
    monkeypatch.setattr(checking, "largest_difference", lambda *_, **__: checking.Difference(0.5, 1.0))
    ended = sortyard("upcycle", "dense", "--out", "sparse")
    assert ended.status == 1
    assert "differs from the original by 0.5" in ended.err
    assert not (tmp_path / "sparse").exists()
