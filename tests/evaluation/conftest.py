"""Tiny sortyard models."""

from typing import Any

import pytest

from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions


def tiny_options(**settings: Any) -> ModelOptions:
    defaults: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "moe_intermediate_size": 24, "bucket_size": 4, "near_buckets": 2, "beam": 2, "local_window": 1,
        "query_chunk": 8, "dense_up_to": 16,
    }  # fmt: skip
    return ModelOptions(**(defaults | settings))


@pytest.fixture
def tiny_masked_lm() -> Any:
    return build_model(tiny_options(), head="masked_lm", vocab_size=40, tokenizer_ids={"pad_token_id": 0}, seed=0)
