"""The encoders of `bench encoder`, with random weights: BERT and ModernBERT as transformers has them, and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from sortyard.evaluation.cost import ParameterCounts, parameter_counts
from sortyard.model.configuration import SortyardConfig
from sortyard.studies.bench.cases import DTYPES

BERT_POSITIONS = 512
VOCABULARY = 30_522  # BERT's
# BERT-large's width, depth and number of parameters; its feed-forward layers are 16 experts, of which 2 are active.
OURS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2**20,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_expert_groups": 4,
    "num_groups_per_tok": 2,
    "moe_intermediate_size": 176,
}
ALL_ACTIVE = {"num_experts": 1, "num_expert_groups": 1, "num_groups_per_tok": 1, "intermediate_size": 16 * 176}
KEPT_MODELS = 9


@dataclass(frozen=True)
class EncoderModel:
    """One encoder.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        config: Makes its configuration, with room for so many positions.
        ours: Whether it is this library's.
        is_quadratic: Whether its time grows as the square of the length.
    """

    name: str
    note: str
    config: Callable[[int], Any]
    ours: bool
    is_quadratic: bool


def _bert(positions: int, **sizes: int) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=max(BERT_POSITIONS, positions),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )


def _bert_large(positions: int) -> Any:
    return _bert(positions, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def _bert_base(positions: int) -> Any:
    return _bert(positions, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)


def _modernbert_large(positions: int) -> Any:
    from transformers import ModernBertConfig

    return ModernBertConfig(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        intermediate_size=2624,
        max_position_embeddings=max(8192, positions),
    )


def _ours(**changes: Any) -> Callable[[int], SortyardConfig]:
    return lambda _: SortyardConfig(**(OURS | changes))


MODELS = {
    model.name: model
    for model in (
        EncoderModel("bert-large", "transformers' BERT, large, positions extended", _bert_large, False, True),
        EncoderModel("modernbert-large", "transformers' ModernBERT, large", _modernbert_large, False, True),
        EncoderModel("bert-base", "transformers' BERT, base, positions extended", _bert_base, False, True),
        EncoderModel("sortyard", "ours: as many parameters as BERT-large, 16 experts, 2 active", _ours(), True, False),
        EncoderModel(
            "sortyard-20", "ours with 20 experts: as many parameters as ModernBERT-large",
            _ours(num_experts=20, num_expert_groups=5), True, False,
        ),
        EncoderModel(
            "sortyard-dense-attention", "ours with dense attention in all layers", _ours(attention="dense"), True, True
        ),
        EncoderModel(
            "sortyard-all-active", "ours with dense attention, and dense layers as wide as all experts together",
            _ours(attention="dense", **ALL_ACTIVE), True, True,
        ),
    )
}  # fmt: skip


@lru_cache(maxsize=KEPT_MODELS)
def load_model(name: str, *, dtype: str, device: str, positions: int, seed: int) -> Any:
    """Build an encoder with random weights; the last few are kept.

    Args:
        name: A key of `MODELS`.
        dtype: "fp32" or "bf16".
        device: Where it runs.
        positions: Tokens of the longest sequence it will see.
        seed: Seed of its weights.

    Returns:
        The encoder in evaluation mode; called with `input_ids` and `attention_mask`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(MODELS[name], positions=positions).to(device, DTYPES[dtype]).eval()


@lru_cache
def sizes(name: str) -> ParameterCounts:
    """Count an encoder's parameters, with as many positions as its published configuration has."""
    with torch.device("meta"):
        return parameter_counts(_build(MODELS[name], positions=0))


def _build(model: EncoderModel, *, positions: int) -> Any:
    from transformers import AutoModel

    extra: dict[str, Any] = {} if model.ours else {"attn_implementation": "sdpa"}
    if model.name.startswith("bert"):
        extra["add_pooling_layer"] = False
    return AutoModel.from_config(model.config(positions), **extra)
