"""After step 0: what of an upcycled model learns at once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sortyard.interop import upcycle
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.modeling import SortyardPreTrainedModel
from tests.interop.dense_families import VOCABULARY, random_model

EXPERTS, GROUPS = 8, 4
FAMILIES = ["bert", "modernbert"]


def labelled_batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(4, VOCABULARY, (16, 32), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.roll(1, dims=1)}


def expert_layers(model: SortyardPreTrainedModel) -> list[ExpertLayer]:
    return [module for module in model.modules() if isinstance(module, ExpertLayer)]


def after_backward(family: str, **settings: Any) -> SortyardPreTrainedModel:
    model = upcycle(random_model(family, "masked_lm"), balance="none", **settings).train()
    model(**labelled_batch()).loss.backward()
    return model


def norms(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.flatten(1).norm(dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_replica_and_its_row_of_the_gate_have_a_gradient(family):
    model = after_backward(family, num_experts=EXPERTS, num_groups=GROUPS)
    for layer in expert_layers(model):
        up = layer.gate_up_proj if layer.gated else layer.up_proj
        for parameter in (layer.router.gate, up, layer.down_proj):
            found = norms(parameter.grad)
            assert len(found) == EXPERTS
            assert (found > 1e-8).all()
        width = layer.down_proj.shape[1]
        assert (norms(layer.router.gate.grad[:, width:]) > 0).all()  # the context's half, too


@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_are_alike_at_first_and_part_within_a_few_steps(family):
    model = upcycle(random_model(family, "masked_lm"), num_experts=EXPERTS, num_groups=GROUPS).train()
    layers = expert_layers(model)
    assert all(distances(layer).max() == 0 for layer in layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**labelled_batch()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(distances(layer).min() > 1e-4 for layer in layers)


def distances(layer: ExpertLayer) -> Tensor:
    """Mean distance of the two replicas of each shard, over weights in and out."""
    up = layer.gate_up_proj if layer.gated else layer.up_proj
    pairs = [weight.detach().unflatten(0, (GROUPS, EXPERTS // GROUPS)) for weight in (up, layer.down_proj)]
    return torch.stack([(pair[:, 0] - pair[:, 1]).abs().mean((1, 2)) for pair in pairs])


def test_the_router_of_whole_copies_stands_still_at_first():
    shards, copies = (
        after_backward("bert", num_experts=EXPERTS, num_groups=GROUPS, experts_from=way) for way in ("shards", "copies")
    )
    live, dead = (
        torch.stack([layer.router.gate.grad.norm() for layer in expert_layers(model)]) for model in (shards, copies)
    )
    assert (dead < 1e-4 * live).all()


def test_experts_beside_a_kept_layer_start_with_their_output():
    model = after_backward("bert", num_experts=EXPERTS, num_groups=GROUPS, experts_from="shared")
    for layer, block in zip(expert_layers(model), model.model.encoder.layers, strict=True):
        assert not layer.down_proj.any()
        assert (norms(layer.down_proj.grad) > 0).all()
        assert norms(layer.up_proj.grad).max() == 0
        assert block.shared_ffn.up_proj.weight.grad.norm() > 0


def test_dropped_copies_have_a_live_router():
    model = after_backward("bert", num_experts=EXPERTS, num_groups=GROUPS, experts_from="drop")
    assert all((norms(layer.router.gate.grad) > 1e-8).all() for layer in expert_layers(model))


@pytest.mark.parametrize(("number", "rate"), [(8, 0.0), (32, 0.001)])
def test_many_experts_get_the_selection_bias(number, rate):
    model = random_model("bert", "base")
    assert upcycle(model, num_experts=number, num_groups=4).config.bias_update_rate == rate
