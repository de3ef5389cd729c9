"""Sortyard's models among transformers' own tests; `run.py` puts this file beside them."""

import unittest

import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import require_torch, torch_device

import sortyard  # noqa: F401  (registers the Auto classes)
from sortyard.model.configuration import SortyardConfig
from sortyard.model.heads import (
    SortyardForCausalLM,
    SortyardForMaskedLM,
    SortyardForQuestionAnswering,
    SortyardForSequenceClassification,
    SortyardForTokenClassification,
)
from sortyard.model.modeling import SortyardModel

from ..test_configuration_common import ConfigTester
from ..test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from ..test_training_mixin import TrainingTesterMixin

# The tests make labels by these tables of names, which a model from outside is not in.
TABLES = {
    "MASKED_LM": SortyardForMaskedLM,
    "CAUSAL_LM": SortyardForCausalLM,
    "SEQUENCE_CLASSIFICATION": SortyardForSequenceClassification,
    "TOKEN_CLASSIFICATION": SortyardForTokenClassification,
    "QUESTION_ANSWERING": SortyardForQuestionAnswering,
}
for table, model_class in TABLES.items():
    getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")["sortyard"] = model_class.__name__
modeling_auto.MODEL_MAPPING_NAMES["sortyard"] = SortyardModel.__name__


class ModelTester:
    """Small models whose attention is in buckets at the tests' lengths."""

    batch_size = 6
    seq_length = 24
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    type_vocab_size = 0
    num_labels = 3
    is_training = True

    def __init__(self, parent: unittest.TestCase, **other: object) -> None:
        self.parent = parent
        self.other = other

    def get_config(self) -> SortyardConfig:
        settings = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 48,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_expert_groups": 2,
            "max_position_embeddings": 128,
            "bucket_size": 2,
            "query_chunk": 4,
            "near_buckets": 1,
            "beam": 2,
            "local_window": 2,
            "dense_up_to": 0,
            "pad_token_id": 0,
        }
        return SortyardConfig(**(settings | self.other))

    def prepare_config_and_inputs_for_common(self) -> tuple[SortyardConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        mask = random_attention_mask(shape)
        return self.get_config(), {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": mask}


class Common(ModelTesterMixin, TrainingTesterMixin):
    """What every kind of model is tested for."""

    test_can_init_all_missing_weights_before_2023 = True
    settings: dict[str, object] = {}  # noqa: RUF012
    all_model_classes = (
        SortyardForMaskedLM,
        SortyardModel,
        SortyardForSequenceClassification,
        SortyardForTokenClassification,
        SortyardForQuestionAnswering,
    )

    def setUp(self) -> None:
        self.model_tester = ModelTester(self, **self.settings)
        self.config_tester = ConfigTester(self, config_class=SortyardConfig, hidden_size=32)

    def test_generation_tester_mixin_inheritance(self) -> None:
        self.skipTest("the source distribution has no tests of generation")

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_model_runs_where_it_is_sent(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SortyardModel(config).to(torch_device).eval()
        states = model(**inputs).last_hidden_state
        assert states.shape == (self.model_tester.batch_size, self.model_tester.seq_length, 32)
        embeds = floats_tensor([2, 5, 32])
        assert model(inputs_embeds=embeds).last_hidden_state.shape == (2, 5, 32)


@require_torch
class SparseModelsTest(Common, unittest.TestCase):
    """Bucket attention and experts."""


@require_torch
class SlidingModelsTest(Common, unittest.TestCase):
    """One layer with a sliding window, one with buckets; a dense feed-forward layer and experts."""

    settings = {"attention_layers": ["sliding", "bucket"], "sliding_window": 4, "expert_layers": [False, True]}  # noqa: RUF012

    def test_sliding_window_mask(self) -> None:
        """In place of a test of causal windows that hold the query's own position and those before it."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        positions = torch.arange(self.model_tester.seq_length)
        outside = (positions[:, None] - positions).abs() > config.sliding_window
        for model_class in self.all_model_classes:
            model = model_class(config).to(torch_device).eval()
            sliding, buckets = model(**inputs, output_attentions=True).attentions
            assert (sliding[..., outside] == 0).all()
            assert (sliding[..., ~outside] > 0).all()
            assert (buckets[..., outside] > 0).any()


@require_torch
class CausalModelsTest(Common, unittest.TestCase):
    """The causal language model."""

    settings = {"context": "running_mean"}  # noqa: RUF012
    all_model_classes = (SortyardForCausalLM,)
