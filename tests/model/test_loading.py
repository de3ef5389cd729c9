"""Loading through the Auto classes, and nothing left as it came out of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import HEADS
from sortyard.model.heads import SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.model.modeling import SortyardModel, SortyardPreTrainedModel

from .conftest import SHAPES, tiny_config

AUTO = {
    "AutoModel": "SortyardModel",
    "AutoModelForMaskedLM": "SortyardForMaskedLM",
    "AutoModelForCausalLM": "SortyardForCausalLM",
    "AutoModelForSequenceClassification": "SortyardForSequenceClassification",
    "AutoModelForTokenClassification": "SortyardForTokenClassification",
    "AutoModelForQuestionAnswering": "SortyardForQuestionAnswering",
}


def test_every_auto_class_loads_after_nothing_but_the_import(tmp_path: Path) -> None:
    for head, cls in HEADS.items():
        cls(tiny_config(context="ema")).save_pretrained(tmp_path / head)
    SortyardModel(tiny_config(context="ema")).save_pretrained(tmp_path / "base")
    heads = ["base", *HEADS]  # in the order of AUTO
    code = """
import json, sys
import sortyard
import transformers
found = {}
for name, folder in json.loads(sys.argv[1]):
    model = getattr(transformers, name).from_pretrained(folder)
    found[name] = type(model).__name__
print(json.dumps(found))
"""
    pairs = [[name, str(tmp_path / head)] for name, head in zip(AUTO, heads, strict=True)]
    answer = subprocess.run([sys.executable, "-c", code, json.dumps(pairs)], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == AUTO
    assert "newly initialized" not in answer.stderr


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever is not written shows."""

    def poison(allocate):
        def allocated(*args: object, **kwargs: object) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return allocated

    with torch.device("meta"):
        torch.empty(0)  # torch notes its constructors at the first use of a device context: before we stand in for some
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


def unwritten(model: torch.nn.Module) -> list[str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not any(tensor.is_meta for _, tensor in tensors)
    return [name for name, tensor in tensors if not tensor.isfinite().all()]


ROUTERS = {"frozen-random": {"router": "frozen_random"}, "group-gate": {"group_gate": "context"}}


@pytest.fixture(params=SHAPES | ROUTERS, ids=str)
def any_config(request: pytest.FixtureRequest) -> SortyardConfig:
    return tiny_config(**(SHAPES | ROUTERS)[request.param])


@pytest.mark.usefixtures("poisoned_memory")
def test_a_new_head_on_a_saved_encoder_is_wholly_initialised(any_config, tmp_path):
    source = SortyardModel(any_config)
    source.save_pretrained(tmp_path)
    model = SortyardForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert unwritten(model) == []
    assert model.classifier.weight.shape == (3, 32)
    assert 0 < model.classifier.weight.std() < 0.1
    assert not model.classifier.bias.any()
    assert (model.head.norm.weight == 1).all()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor), name


@pytest.mark.usefixtures("poisoned_memory")
def test_missing_experts_and_gates_are_initialised_and_the_others_kept(tmp_path):
    dense = SortyardForMaskedLM(tiny_config(expert_layers=[False, True], router="frozen_random"))
    with torch.no_grad():
        dense.model.encoder.layers[1].ffn.router.expert_bias.fill_(0.25)
        dense.model.embeddings.word_embeddings.weight[0] = 1.0  # the pad row of a checkpoint need not be zero
    dense.save_pretrained(tmp_path)
    model = SortyardForMaskedLM.from_pretrained(tmp_path, expert_layers=[True, True])
    assert unwritten(model) == []
    assert (model.model.embeddings.word_embeddings.weight[0] == 1.0).all()
    first, second = (layer.ffn for layer in model.model.encoder.layers)
    assert (second.router.expert_bias == 0.25).all()
    assert not first.router.expert_bias.any()
    expected = SortyardForMaskedLM(tiny_config(router="frozen_random")).model.encoder.layers[0].ffn.router.gate
    assert torch.equal(first.router.gate, expected)


@pytest.mark.usefixtures("poisoned_memory")
def test_a_model_made_on_the_meta_device_can_be_filled(any_config):
    with torch.device("meta"):
        model: SortyardPreTrainedModel = SortyardForMaskedLM(any_config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    model.init_weights()
    model.tie_weights()
    assert unwritten(model) == []
