from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from sortyard import SortyardConfig
from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target, meta_model
from sortyard.jobs.arithmetic import token_flops


def model(**fields: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 64, "num_experts": 4, "moe_intermediate_size": 32, "dense_up_to": 64}
    return meta_model(SortyardConfig(**sizes, **more, max_position_embeddings=4096, **fields), head="masked_lm")


def test_forward_and_backward_are_three_times_the_forward() -> None:
    own = model()
    found = token_flops(own, lengths=np.array([512]), target_share=0.5)
    head = 0.5 * head_flops_per_target(own)
    assert found is not None
    assert found.executed == pytest.approx(3 * (forward_flops_per_token(own, length=512) + head))
    assert found.dense == pytest.approx(3 * (forward_flops_per_token(own, length=512, attention="dense") + head))
    assert found.executed < found.dense


def test_long_sequences_count_by_their_tokens() -> None:
    own, lengths = model(attention="dense"), np.array([64, 2048])
    found = token_flops(own, lengths=lengths, target_share=0.0)
    each = [forward_flops_per_token(own, length=int(n)) for n in lengths]
    assert found is not None
    assert found.executed == pytest.approx(3 * float(lengths @ each) / lengths.sum())


def test_short_sequences_have_nothing_sparse() -> None:
    found = token_flops(model(), lengths=np.full(100, 32), target_share=0.0)
    assert found is not None
    assert found.executed == found.dense


def test_other_libraries_models_are_not_counted() -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    assert token_flops(BertModel(config), lengths=np.array([5]), target_share=0.0) is None
