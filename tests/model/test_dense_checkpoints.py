"""Weights of BERT's and ModernBERT's shape fit: the same numbers come out of our model as out of transformers'."""

import copy
import re

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

from sortyard.model.configuration import SortyardConfig
from sortyard.model.heads import SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.model.modeling import SortyardPreTrainedModel

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DENSE = SIZES | {"attention": "dense", "num_experts": 1}
BERT = DENSE | {
    "position_embedding_type": "learned",
    "type_vocab_size": 2,
    "norm_position": "post",
    "norm_eps": 1e-12,
    "use_bias": True,
    "gated_ffn": False,
}
MODERNBERT = DENSE | {
    "attention_layers": ["dense", "sliding", "sliding", "dense"],
    "sliding_window": 3,  # each side; transformers' local_attention is the whole window
    "rope_parameters": {"rope_theta": 160_000.0},
    "sliding_rope_theta": 10_000.0,
    "first_attention_norm": False,
}
BERT_NAMES = [
    (r"bert\.embeddings\.LayerNorm", "model.embeddings.norm"),
    (r"bert\.encoder\.layer", "model.encoder.layers"),
    (r"bert\.", "model."),
    (r"attention\.self\.(query|key|value)", lambda found: f"attention.{found[1][0]}_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"attention\.output\.LayerNorm", "attention_post_norm"),
    (r"intermediate\.dense", "ffn.up_proj"),
    (r"output\.dense", "ffn.down_proj"),
    (r"output\.LayerNorm", "ffn_post_norm"),
    (r"cls\.predictions\.transform\.dense", "head.dense"),
    (r"cls\.predictions\.transform\.LayerNorm", "head.norm"),
    (r"cls\.predictions\.decoder", "decoder"),
    (r"model\.pooler\.dense", "head.dense"),
]
MODERNBERT_NAMES = [
    (r"tok_embeddings", "word_embeddings"),
    (r"model\.layers", "model.encoder.layers"),
    (r"model\.final_norm", "model.encoder.final_norm"),
    (r"attn_norm", "attention_norm"),
    (r"mlp_norm", "ffn_norm"),
    (r"attn\.Wo", "attention.o_proj"),
    (r"mlp\.Wi", "ffn.gate_up_proj"),
    (r"mlp\.Wo", "ffn.down_proj"),
]


def random_model(cls: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """A model none of whose weights is as a fresh model has it, so that a swapped or forgotten one shows."""
    model = cls(config).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def fill(model: SortyardPreTrainedModel, theirs: PreTrainedModel, names: list) -> SortyardPreTrainedModel:
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith("attn.Wqkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                prefix = name.removesuffix("attn.Wqkv.weight").replace("model.layers", "model.encoder.layers")
                state[f"{prefix}attention.{part}_proj.weight"] = rows
        elif name != "cls.predictions.bias":  # BERT's decoder bias once more
            for pattern, ours in names:
                name = re.sub(pattern, ours, name)
            state[name] = tensor
    model = model.double().eval()
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(3, 27, dtype=torch.long)
    mask[1, 19:], mask[2, 4:] = 0, 0
    ids = torch.randint(3, 61, (3, 27), generator=generator)
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def assert_same_states(
    ours: SortyardPreTrainedModel, theirs: PreTrainedModel, batch: dict[str, Tensor], *, atol: float
) -> None:
    found, expected = (model(**batch, output_hidden_states=True) for model in (ours, theirs))
    real = batch["attention_mask"].bool()
    assert len(found.hidden_states) == len(expected.hidden_states) == 5
    for mine, truth in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], truth[real], rtol=0, atol=atol)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_weights_fit(attention, batch):
    theirs = random_model(
        BertForMaskedLM, BertConfig(**SIZES, type_vocab_size=2, attn_implementation=attention, hidden_act="gelu")
    )
    ours = fill(SortyardForMaskedLM(SortyardConfig(**BERT)), theirs, BERT_NAMES)
    batch["token_type_ids"] = (torch.arange(27) > 9).long().expand(3, -1)
    assert_same_states(ours, theirs, batch, atol=1e-9)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch).logits[real], theirs(**batch).logits[real], rtol=0, atol=1e-9)


def test_berts_pooler_and_classifier_fit(batch):
    theirs = random_model(BertForSequenceClassification, BertConfig(**SIZES, type_vocab_size=2, num_labels=3))
    config = SortyardConfig(**BERT, num_labels=3, classifier_activation="tanh", classifier_norm=False)
    ours = fill(SortyardForSequenceClassification(config), theirs, BERT_NAMES)
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=0, atol=1e-9)


def test_modernbert_weights_fit(batch):
    config = ModernBertConfig(
        **SIZES,
        local_attention=6,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        attn_implementation="sdpa",  # eager gives NaN where a pad's window holds pads alone
    )
    theirs = random_model(ModernBertForMaskedLM, config)
    ours = fill(SortyardForMaskedLM(SortyardConfig(**MODERNBERT)), theirs, MODERNBERT_NAMES)
    # Theirs rotates in float32 whatever the type.
    assert_same_states(ours, theirs, batch, atol=2e-6)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch).logits[real], theirs(**batch).logits[real], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [{"sliding_window": 2}, {"sliding_window": 4}, {"sliding_rope_theta": 160_000.0}],
    ids=["narrower", "wider", "one-base"],
)
def test_a_wrong_setting_would_show(change, batch):
    config = SortyardConfig(**MODERNBERT)
    right = random_model(SortyardForMaskedLM, copy.deepcopy(config))
    wrong = SortyardForMaskedLM(SortyardConfig(**(MODERNBERT | change))).double().eval()
    wrong.load_state_dict(right.state_dict())
    assert (right(**batch).logits - wrong(**batch).logits).abs().max() > 1e-4
