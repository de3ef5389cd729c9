"""From folder to folder; and what is refused, in words that help."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from sortyard.errors import InputError
from sortyard.interop import upcycle
from sortyard.interop.upcycling import upcycle_with_report
from tests.evaluation.tiny import make_tokenizer
from tests.interop.dense_families import FAMILIES, HEADS, make_batch, random_model


def tokenizer_with_mask() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(family: str, head: str) -> Path:
        folder = tmp_path / f"{family}-{head}"
        random_model(family, head).save_pretrained(folder)
        tokenizer_with_mask().save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_checkpoint_makes_a_folder_that_the_auto_classes_load(family, save, tmp_path):
    folder = save(family, "masked_lm")
    found = upcycle_with_report(folder)
    assert found.report.unused == ()
    config = found.model.config
    assert (config.cls_token_id, config.sep_token_id, config.mask_token_id) == (2, 3, 64)
    found.model.save_pretrained(tmp_path / "sparse")
    batch = make_batch(found.original.config)
    real = batch["attention_mask"].bool()
    again = HEADS["masked_lm"].from_pretrained(tmp_path / "sparse").eval()
    encoder = AutoModel.from_pretrained(tmp_path / "sparse").eval()
    with torch.no_grad():
        truth = HEADS["masked_lm"].from_pretrained(folder).eval()(**batch).logits
        torch.testing.assert_close(again(**batch).logits[real], truth[real], rtol=0, atol=1e-5)
        states = encoder(**batch).last_hidden_state
        torch.testing.assert_close(states, again.model(**batch).last_hidden_state, rtol=0, atol=0)


def test_another_head_is_new_and_what_it_cannot_use_is_named(save):
    found = upcycle_with_report(save("bert", "masked_lm"), head="sequence_classification")
    assert {"classifier.weight", "classifier.bias", "head.dense.weight"} <= set(found.report.new)
    assert any("cls.predictions" in name for name in found.report.unused)


def test_a_checkpoint_with_two_heads_gives_the_one_asked_for(save):
    folder = save("bert", "discriminator")  # BertForPreTraining: masked LM and next sentence
    assert upcycle_with_report(folder).report.head == "masked_lm"
    found = upcycle_with_report(folder, head="sequence_classification").report
    assert "head.dense.weight" in found.mapped["pooler.dense.weight"]


def make_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def tear_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def lose_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layer.2.output" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def grow_tokenizer(folder: Path) -> None:
    tokenizer = tokenizer_with_mask()
    tokenizer.add_tokens(["w60", "w61"])
    tokenizer.save_pretrained(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-tokenizer": (lose_tokenizer, "has no tokenizer"),
    "strange-tokenizer": (grow_tokenizer, "ids up to 66"),
    "torn-weights": (tear_weights, "cannot be loaded"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    "lost-layer": (lose_a_layer, "tensors of the encoder are missing"),
    "other-width": (lambda folder: make_config(folder, hidden_size=64), "another shape"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "torn-config": (lambda folder: (folder / "config.json").write_text("{"), "no checkpoint that transformers knows"),
    "no-type": (lambda folder: (folder / "config.json").write_text("{}"), "no checkpoint that transformers knows"),
    "decoder": (lambda folder: make_config(folder, is_decoder=True), "is a decoder"),
    "relative": (lambda folder: make_config(folder, position_embedding_type="relative_key"), "must be absolute"),
    "activation": (lambda folder: make_config(folder, hidden_act="mish"), "'mish' is unknown to experts"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(name, save):
    damage, words = DAMAGES[name]
    folder = save("bert", "masked_lm")
    damage(folder)
    with pytest.raises(InputError, match=words):
        upcycle(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_experts": 9}, "num_experts 9 cannot be dealt evenly into num_groups 4"),
        ({"num_experts": 4}, "nothing to choose"),
        ({"num_experts": 0}, "out of range"),
        ({"num_experts": 10, "num_groups": 5}, "width 48 cannot be cut into 5 equal shards.*choose one of 1, 2$"),
        ({"num_exprts": 8}, "did you mean num_experts"),
        ({"experts_from": "shard"}, "is not one of shards, copies, drop, shared"),
        ({"experts_from": "copies", "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"expert_layers": [3]}, "layers 0 to 2"),
        ({"max_position_embeddings": 32}, "less than the checkpoint's 48"),
        ({"head": "causal_lm"}, "head"),
        ({"bucket_size": 0, "beam": 0}, "bucket_size.*\n.*beam"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_fit_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        upcycle(random_model("bert", "base"), **settings)


def test_a_family_that_is_not_supported_is_told_which_are(tmp_path):
    model = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="gpt2 checkpoint cannot be upcycled; these can: bert, roberta"):
        upcycle(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="electra, distilbert, modernbert"):
        upcycle(tmp_path)


def test_what_is_sparse_already_and_what_is_no_model(tmp_path):
    sparse = upcycle(
        BertModel(
            BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        )
    )
    with pytest.raises(InputError, match="is a sortyard model already"):
        upcycle(sparse)
    with pytest.raises(InputError, match="not Linear"):
        upcycle(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nothing", "no such folder"),
        ("a/b/c", "no such folder"),
        ("", "is empty"),
        ("no-such-owner/no-such-model", "no checkpoint that transformers knows"),
        (__file__, "is a file"),
    ],
)
def test_no_checkpoint_there(source, words):
    with pytest.raises(InputError, match=words):
        upcycle(source)
