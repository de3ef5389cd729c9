"""DistilBERT: BERT's blocks without token types, under other names."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sortyard.interop.upcycling.families.family import Family, activation_of

NORM_EPS = 1e-12


class DistilBertFamily(Family):
    """DistilBERT."""

    layer_pattern = r"transformer\.layer\.(\d+)\.(.+)"
    layer_parts: ClassVar[Mapping[str, str]] = {
        "attention.q_lin": "attention.q_proj",
        "attention.k_lin": "attention.k_proj",
        "attention.v_lin": "attention.v_proj",
        "attention.out_lin": "attention.o_proj",
        "sa_layer_norm": "attention_post_norm",
        "ffn.lin1": "ffn.up_proj",
        "ffn.lin2": "ffn.down_proj",
        "output_layer_norm": "ffn_post_norm",
    }
    encoder_parts: ClassVar[Mapping[str, str]] = {
        "embeddings.word_embeddings": "embeddings.word_embeddings",
        "embeddings.position_embeddings": "embeddings.position_embeddings",
        "embeddings.LayerNorm": "embeddings.norm",
    }
    head_parts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked_lm": {
            "vocab_transform": "head.dense",
            "vocab_layer_norm": "head.norm",
            "vocab_projector": "decoder",
        },
        "sequence_classification": {"pre_classifier": "head.dense", "classifier": "classifier"},
        "token_classification": {"classifier": "classifier"},
        "question_answering": {"qa_outputs": "qa_outputs"},
    }

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """Post-norm blocks with biases and learned positions; a classifier's dense layer has a relu."""
        activation = activation_of(config.activation, field="activation")
        is_language_model = head == "masked_lm"
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.dim,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.hidden_dim,
            "hidden_act": activation,
            "gated_ffn": False,
            "norm_position": "post",
            "norm_eps": NORM_EPS,
            "use_bias": True,
            "position_embedding_type": "learned",
            "max_position_embeddings": config.max_position_embeddings,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "classifier_dropout": config.seq_classif_dropout,
            "classifier_activation": activation if is_language_model else "relu",
            "classifier_norm": is_language_model,
            "initializer_range": config.initializer_range,
            "tie_word_embeddings": config.tie_word_embeddings,
        }
