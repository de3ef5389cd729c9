"""The card: readable by the hub's own parser, and nothing in it that was not measured."""

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelCard

from sortyard.reports.model_card import write_model_card
from tests.reports.conftest import NASTY, add_evaluation, fill


def test_card_of_a_finetuned_model(finetune_run: Path) -> None:
    (finetune_run / "model").mkdir()
    card = ModelCard.load(write_model_card(finetune_run))
    assert card.data.license is None  # the weights are not the library
    assert card.data.library_name == "sortyard"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results or []} == {
        "accuracy": 0.712,
        "f1_macro": 0.7,
    }
    assert "| accuracy | 71.2 % | 25.2 % | 68.0 % |" in card.text
    assert "import sortyard" in card.text
    assert "cut to 128 tokens" in card.text
    assert "/home/someone" not in card.text
    assert (finetune_run / "model" / "README.md").read_bytes() == (finetune_run / "README.md").read_bytes()


def test_card_of_a_pretrained_model(pretrain_run: Path) -> None:
    card = ModelCard.load(write_model_card(pretrain_run))
    assert card.data.eval_results is None
    assert "The held-out loss went from" in card.text
    assert "needs fine-tuning" in card.text
    assert "Pretrained on: docs.jsonl" in card.text
    assert "Attention sparsity: 41%" in card.text
    assert "Utilisation of the experts: 0.900 in the last steps" in card.text
    assert "Versions: sortyard 0.1.0, torch 2.13.0" in card.text


def test_utilisation_that_was_counted_on_texts_wins(pretrain_run: Path) -> None:
    counted = {"headline": 0.948, "dead_experts": 1, "num_tokens": 311354}
    (pretrain_run / "eval").mkdir(exist_ok=True)
    (pretrain_run / "eval" / "routing.json").write_text(json.dumps(counted))
    text = write_model_card(pretrain_run).read_text()
    assert "Utilisation of the experts: 0.948 in the least even layer, on 311,354 tokens; 1 idle" in text


def test_card_of_a_demo(demo_folder: Callable[..., Path]) -> None:
    folder = demo_folder()
    text = write_model_card(folder).read_text()
    assert "Pretrained on: docs.jsonl" in text
    assert "Fine-tuned on: custom, from modules.tsv" in text


def test_names_from_outside_are_harmless(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", name="plain", steps=20, start=2.0, end=1.0)
    add_evaluation(run)
    result = (run.eval / "custom.json").read_text().replace('"bag of words"', '"<script>|x"')
    (run.eval / "custom.json").write_text(result)
    text = write_model_card(run.path).read_text()
    assert "\\<script\\>\\|x" in text
    assert NASTY not in text
