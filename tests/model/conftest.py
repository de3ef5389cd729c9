"""Tiny models of every shape."""

from typing import Any

import pytest
import torch

from sortyard.model.configuration import SortyardConfig

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_expert_groups": 2,
    "num_groups_per_tok": 2,
    "num_experts_per_tok": 2,
    "bucket_size": 4,
    "query_chunk": 8,
    "near_buckets": 2,
    "beam": 2,
    "local_window": 2,
    "dense_up_to": 8,
    "max_position_embeddings": 128,
}

SHAPES: dict[str, dict[str, Any]] = {
    "rope-pre-gated": {},
    "bert-like": {
        "position_embedding_type": "learned",
        "norm_position": "post",
        "gated_ffn": False,
        "use_bias": True,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
    },
    "modernbert-like": {"first_attention_norm": False, "attention_layers": ["dense", "sliding"], "sliding_window": 4},
    "dense": {"attention": "dense", "num_experts": 1},
    "rounds": {"selection": "rounds"},
    "mixed-layers": {"attention_layers": ["bucket", "dense"], "expert_layers": [False, True]},
    "token-hash": {"router": "token_hash"},
    "static-gate": {"context": "none"},
}


def tiny_config(**changes: Any) -> SortyardConfig:
    return SortyardConfig(**(TINY | changes))


@pytest.fixture(params=SHAPES, ids=str)
def config(request: pytest.FixtureRequest) -> SortyardConfig:
    return tiny_config(**SHAPES[request.param])


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 97, (2, 40), generator=torch.Generator().manual_seed(1))
