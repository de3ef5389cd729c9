"""BERT and what has its blocks: MiniLM, RoBERTa, XLM-RoBERTa, ELECTRA."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sortyard.interop.upcycling.families.family import Family, activation_of

_CLASSIFIER = {"classifier": "classifier"}
_SPAN = {"qa_outputs": "qa_outputs"}


class BertFamily(Family):
    """BERT and MiniLM."""

    layer_pattern = r"encoder\.layer\.(\d+)\.(.+)"
    layer_parts: ClassVar[Mapping[str, str]] = {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "attention.output.LayerNorm": "attention_post_norm",
        "intermediate.dense": "ffn.up_proj",
        "output.dense": "ffn.down_proj",
        "output.LayerNorm": "ffn_post_norm",
    }
    encoder_parts: ClassVar[Mapping[str, str]] = {
        "embeddings.word_embeddings": "embeddings.word_embeddings",
        "embeddings.position_embeddings": "embeddings.position_embeddings",
        "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
        "embeddings.LayerNorm": "embeddings.norm",
    }
    head_parts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked_lm": {
            "cls.predictions.transform.dense": "head.dense",
            "cls.predictions.transform.LayerNorm": "head.norm",
            "cls.predictions.decoder": "decoder",
            "cls.predictions": "decoder",
        },
        "sequence_classification": {"pooler.dense": "head.dense"} | _CLASSIFIER,
        "token_classification": _CLASSIFIER,
        "question_answering": _SPAN,
    }
    classifier_activation: ClassVar[str] = "tanh"

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """Post-norm blocks with biases, learned positions and token types."""
        activation = activation_of(config.hidden_act, field="hidden_act")
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        # A classifier fine-tuned from a language model takes over that model's dense layer, so as it was trained.
        is_language_model = head == "masked_lm"
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "hidden_act": activation,
            "gated_ffn": False,
            "norm_position": "post",
            "norm_eps": config.layer_norm_eps,
            "use_bias": True,
            "position_embedding_type": "learned",
            "max_position_embeddings": config.max_position_embeddings,
            "type_vocab_size": config.type_vocab_size,
            "hidden_dropout_prob": config.hidden_dropout_prob,
            "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
            "classifier_dropout": dropout,
            "head_activation": self.head_activation(activation),
            "classifier_activation": self.head_activation(activation)
            if is_language_model
            else self.classifier_activation,
            "classifier_norm": is_language_model,
            "initializer_range": config.initializer_range,
            "tie_word_embeddings": config.tie_word_embeddings,
        }

    def head_activation(self, hidden_act: str) -> str:
        """Activation of the language model's dense layer."""
        return hidden_act


class RobertaFamily(BertFamily):
    """RoBERTa and XLM-RoBERTa, whose positions begin after the padding id."""

    head_parts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked_lm": {
            "lm_head.dense": "head.dense",
            "lm_head.layer_norm": "head.norm",
            "lm_head.decoder": "decoder",
            "lm_head": "decoder",
        },
        "sequence_classification": {"classifier.dense": "head.dense", "classifier.out_proj": "classifier"},
        "token_classification": _CLASSIFIER,
        "question_answering": _SPAN,
    }

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """As BERT's, with the positions that text can have."""
        positions = config.max_position_embeddings - _first_position(config)
        return super().settings(config, head=head) | {"max_position_embeddings": positions}

    def convert(self, name: str, tensor: Tensor, *, config: Any, head: str) -> Iterable[tuple[str, Tensor]]:
        """As BERT's, without the positions of padding and before."""
        if name == "embeddings.position_embeddings.weight":
            tensor = tensor[_first_position(config) :]
        return super().convert(name, tensor, config=config, head=head)

    def head_activation(self, hidden_act: str) -> str:  # noqa: ARG002
        """Always gelu."""
        return "gelu"


class ElectraFamily(BertFamily):
    """ELECTRA: narrow embeddings with a projection; the discriminator becomes a classifier of tokens."""

    encoder_parts: ClassVar[Mapping[str, str]] = {
        **BertFamily.encoder_parts,
        "embeddings_project": "embeddings.projection",
    }
    head_parts: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked_lm": {
            "generator_predictions.dense": "head.dense",
            "generator_predictions.LayerNorm": "head.norm",
            "generator_lm_head": "decoder",
        },
        "sequence_classification": {"classifier.dense": "head.dense", "classifier.out_proj": "classifier"},
        "token_classification": _CLASSIFIER,
        "question_answering": _SPAN,
        "discriminator": {
            "discriminator_predictions.dense": "head.dense",
            "discriminator_predictions.dense_prediction": "classifier",
        },
    }
    classifier_activation = "gelu"

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """As BERT's, with the width of the embeddings and the discriminator's two classes."""
        settings = super().settings(config, head=head)
        is_narrow = config.embedding_size != config.hidden_size
        settings |= {"embedding_size": config.embedding_size} if is_narrow else {}
        if head != "discriminator":
            return settings
        names = {0: "original", 1: "replaced"}
        return settings | {
            "token_head": True,
            "classifier_activation": settings["hidden_act"],
            "classifier_dropout": 0.0,
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
        }

    def convert(self, name: str, tensor: Tensor, *, config: Any, head: str) -> Iterable[tuple[str, Tensor]]:
        """As BERT's; the discriminator's one logit z becomes the two classes' logits (0, z), the same probability."""
        found = list(super().convert(name, tensor, config=config, head=head))
        if head == "discriminator":
            found = [
                (ours, torch.cat((torch.zeros_like(value), value)) if ours.startswith("classifier.") else value)
                for ours, value in found
            ]
        return found

    def head_activation(self, hidden_act: str) -> str:  # noqa: ARG002
        """Always gelu."""
        return "gelu"


def _first_position(config: Any) -> int:
    return int(config.pad_token_id) + 1
