"""ModernBERT: pre-norm gated blocks, rotary positions, and windows in two layers of three."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sortyard.errors import InputError
from sortyard.interop.upcycling.families.family import Family, activation_of

_HEAD = {"head.dense": "head.dense", "head.norm": "head.norm"}


class ModernBertFamily(Family):
    """ModernBERT."""

    layer_pattern = r"layers\.(\d+)\.(.+)"
    layer_parts: ClassVar[Mapping[str, str]] = {
        "attn_norm": "attention_norm",
        "attn.q": "attention.q_proj",
        "attn.k": "attention.k_proj",
        "attn.v": "attention.v_proj",
        "attn.Wo": "attention.o_proj",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn.gate_up_proj",
        "mlp.Wo": "ffn.down_proj",
    }
    encoder_parts: ClassVar[Mapping[str, str]] = {
        "embeddings.tok_embeddings": "embeddings.word_embeddings",
        "embeddings.norm": "embeddings.norm",
        "final_norm": "encoder.final_norm",
    }
    head_parts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked_lm": _HEAD | {"decoder": "decoder"},
        "sequence_classification": _HEAD | {"classifier": "classifier"},
        "token_classification": _HEAD | {"classifier": "classifier"},
        "question_answering": _HEAD | {"classifier": "qa_outputs"},
    }

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """Rotary bases by kind of layer; biases everywhere if the checkpoint has any, zeros where it has none."""
        del head
        biases = (config.norm_bias, config.attention_bias, config.mlp_bias, config.classifier_bias)
        activation = activation_of(config.hidden_activation, field="hidden_activation")
        head_activation = activation_of(config.classifier_activation, field="classifier_activation")
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "hidden_act": activation,
            "gated_ffn": True,
            "norm_position": "pre",
            "norm_eps": config.norm_eps,
            "first_attention_norm": False,
            "use_bias": any(biases),
            "position_embedding_type": "rope",
            "max_position_embeddings": config.max_position_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": _theta(config, "full_attention")},
            "sliding_rope_theta": _theta(config, "sliding_attention"),
            "attention_layers": ["sliding" if "sliding" in kind else "dense" for kind in config.layer_types],
            "sliding_window": config.local_attention // 2,
            "hidden_dropout_prob": config.mlp_dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "classifier_dropout": config.classifier_dropout,
            "classifier_pooling": config.classifier_pooling,
            "head_activation": head_activation,
            "classifier_activation": head_activation,
            "token_head": True,
            "initializer_range": config.initializer_range,
            "tie_word_embeddings": config.tie_word_embeddings,
        }

    def convert(self, name: str, tensor: Tensor, *, config: Any, head: str) -> Iterable[tuple[str, Tensor]]:
        """Split queries, keys and values, which ModernBERT stacks."""
        parts = [(name, tensor)]
        if ".attn.Wqkv." in name:
            parts = [(name.replace("Wqkv", part), rows) for part, rows in zip("qkv", tensor.chunk(3), strict=True)]
        convert = super().convert
        return [found for part, rows in parts for found in convert(part, rows, config=config, head=head)]


def _theta(config: Any, kind: str) -> float:
    parameters = config.rope_parameters[kind]
    if parameters["rope_type"] != "default":
        raise InputError(f"rope_parameters: rope_type {parameters['rope_type']} is not supported; it must be default")
    return float(parameters["rope_theta"])
