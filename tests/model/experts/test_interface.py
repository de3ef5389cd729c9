"""transformers' experts functions on our layers, and ours on transformers' models."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, MixtralConfig, MixtralModel

from sortyard.model.experts.interface import check_implementation
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.model.modeling import SortyardModel
from tests.model.conftest import tiny_config

IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm", "sortyard"]
SHAPES = {
    "gated": {"gated_ffn": True},
    "plain-bias": {"gated_ffn": False, "use_bias": True},
    "gated-bias-silu": {"gated_ffn": True, "use_bias": True, "hidden_act": "silu"},
}


def outcome(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    # Not their squares: those add up to the same after a norm, and all gradients would be rounding errors.
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    return [out.detach(), *(torch.zeros(()) if grad is None else grad for grad in grads)]


def assert_alike(found: list[torch.Tensor], truth: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * max(theirs.abs().max().item(), 1e-3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS[1:])
def test_every_implementation_gives_the_same_padding_included(shape, name, ids):
    torch.manual_seed(0)
    model = SortyardModel(tiny_config(**SHAPES[shape]))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    model.set_experts_implementation("eager")
    truth = outcome(model, ids, mask)
    model.set_experts_implementation(name)
    assert model.config._experts_implementation == name
    assert_alike(outcome(model, ids, mask), truth)


def test_ours_is_the_default_and_the_choice_is_not_saved(tmp_path, ids):
    model = SortyardForMaskedLM(tiny_config())
    assert model.config._experts_implementation == "sortyard"
    model.set_experts_implementation("batched_mm")
    assert all(layer.ffn.config._experts_implementation == "batched_mm" for layer in model.model.encoder.layers)
    model.save_pretrained(tmp_path)
    assert SortyardForMaskedLM.from_pretrained(tmp_path).config._experts_implementation == "sortyard"
    chosen = SortyardForMaskedLM.from_pretrained(tmp_path, experts_implementation="grouped_mm")
    assert chosen.config._experts_implementation == "grouped_mm"
    torch.testing.assert_close(chosen(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_the_choice_is_really_followed(ids, monkeypatch):
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    seen = []

    def mine(module, hidden_states, top_k_index, top_k_weights):
        seen.append(top_k_index.shape)
        return torch.zeros_like(hidden_states)

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._local_mapping, "mine", mine)
    model = SortyardModel(tiny_config())
    model.set_experts_implementation("mine")
    model(ids)
    assert seen == [(80, 2), (80, 2)]


def test_unknown_names_are_refused(tmp_path):
    model = SortyardModel(tiny_config())
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of eager, batched_mm"):
        model.set_experts_implementation("fast")
    assert model.config._experts_implementation == "sortyard"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="experts_implementation='fast'"):
        AutoModel.from_pretrained(tmp_path, experts_implementation="fast")
    assert check_implementation(None) == "sortyard"


def mixtral(**changes) -> MixtralModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralModel(MixtralConfig(**shape, **heads, **changes))


def test_ours_runs_the_experts_of_other_models(ids):
    model, mask = mixtral(), torch.ones_like(ids)
    truth = outcome(model, ids, mask)
    model.set_experts_implementation("sortyard")
    assert_alike(outcome(model, ids, mask), truth)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_ours_leaves_out_the_slots_of_other_ranks_experts(dtype, tolerance):
    """Under expert parallelism, they carry the number of experts; theirs leave them out, too."""
    experts = mixtral().layers[0].mlp.experts.to(dtype)
    experts._is_expert_parallel = True
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 32, generator=generator).to(dtype)
    chosen = torch.rand(40, 5, generator=generator).topk(2).indices
    weights = torch.rand(40, 2, generator=generator).masked_fill(chosen == 4, 0.0)
    found = {}
    for name in ("grouped_mm", "sortyard"):
        experts.config._experts_implementation = name
        found[name] = experts(tokens, chosen, weights)
    assert found["sortyard"].dtype == dtype
    scale = found["grouped_mm"].abs().max().item()
    torch.testing.assert_close(found["sortyard"], found["grouped_mm"], atol=tolerance * scale, rtol=0)


def test_what_ours_cannot_represent_is_refused(ids):
    model = mixtral(hidden_act="mish")
    model.set_experts_implementation("sortyard")
    with pytest.raises(ValueError, match="activation 'mish' is none of gelu"):
        model(ids)
    model = mixtral()
    model.set_experts_implementation("sortyard")
    model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match="MixtralExperts: its weights are transposed"):
        model(ids)
