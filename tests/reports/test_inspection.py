"""What an inspection of a tiny real model holds."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.reports.inspection import inspect_model, write_inspection

WORDS = ("[PAD]", "[UNK]", "a", "list", "of", "the", "files")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")


def tiny(**settings: object) -> torch.nn.Module:
    options = ModelOptions(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, moe_intermediate_size=16,
        bucket_size=4, near_buckets=2, beam=2, local_window=1, query_chunk=8, dense_up_to=16, **settings,
    )  # fmt: skip
    return build_model(
        options, head="sequence_classification", vocab_size=len(WORDS), tokenizer_ids={"pad_token_id": 0}, seed=0
    )


def test_inspection_describes_buckets_and_routing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny()
    texts = ["a list of files", "the list of the files of a list " * 6]
    content = json.loads(write_inspection(tmp_path, model=model, tokenizer=tokenizer, texts=texts).read_text())
    picture = content["buckets"]["picture"]
    mass, kind = torch.tensor(picture["mass"]), torch.tensor(picture["kind"])
    assert mass.shape == kind.shape == (48, 48)
    torch.testing.assert_close(mass.sum(-1), torch.ones(48), atol=1e-2, rtol=0)
    assert set(kind.flatten().tolist()) == {1, 2}  # the tree accounts for every key
    assert 0 < picture["sparsity"] < 1
    sample = content["routing"]["samples"][0]
    assert sample["tokens"] == ["a", "list", "of", "files"]
    assert [len(layer) for layer in sample["experts"]] == [4, 4]
    assert model.training


def test_dense_model_without_experts_has_nothing_to_show(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(attention="dense", num_experts=1)
    assert inspect_model(model, tokenizer=tokenizer, texts=["a list"]) == {"buckets": {}, "routing": {}}


def test_no_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="at least one text"):
        inspect_model(tiny(), tokenizer=tokenizer, texts=[])
