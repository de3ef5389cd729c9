"""From a recipe's model section to a freshly initialised model."""

from collections.abc import Mapping
from typing import Any

import torch

from sortyard.model.configuration import SortyardConfig
from sortyard.model.heads import (
    SortyardForCausalLM,
    SortyardForMaskedLM,
    SortyardForQuestionAnswering,
    SortyardForSequenceClassification,
    SortyardForTokenClassification,
)
from sortyard.model.modeling import SortyardPreTrainedModel
from sortyard.model.options import ModelOptions

HEADS: Mapping[str, type[SortyardPreTrainedModel]] = {
    "masked_lm": SortyardForMaskedLM,
    "causal_lm": SortyardForCausalLM,
    "sequence_classification": SortyardForSequenceClassification,
    "token_classification": SortyardForTokenClassification,
    "question_answering": SortyardForQuestionAnswering,
}


def build_model(
    options: ModelOptions,
    *,
    head: str,
    vocab_size: int,
    tokenizer_ids: Mapping[str, int | None],
    seed: int,
    **config_fields: Any,
) -> SortyardPreTrainedModel:
    """A model with random weights that depend on nothing but the arguments.

    Args:
        options: the recipe's model section.
        head: a key of `HEADS`.
        vocab_size: number of token ids, > 0.
        tokenizer_ids: `pad_token_id`, `cls_token_id`, `sep_token_id`, `mask_token_id`.
        seed: seed of the weights.
        **config_fields: further fields of `SortyardConfig`, such as `num_labels` or `id2label`.

    Returns:
        The model, in training mode, on the CPU, in float32.

    Raises:
        ValueError: for an unknown head.
    """
    if head not in HEADS:
        raise ValueError(f"head {head!r} is unknown; choose one of {', '.join(HEADS)}")
    config = SortyardConfig.from_options(
        options, vocab_size=vocab_size, causal=head == "causal_lm", **tokenizer_ids, **config_fields
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HEADS[head](config)
    model.train()
    return model
