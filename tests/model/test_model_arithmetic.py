"""Numbers of the model that its other tests take for granted: what is averaged, pooled, dropped and reported."""

import pytest
import torch

from sortyard.model.heads import SortyardForCausalLM, SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.model.modeling import SortyardModel
from sortyard.ops import expected_sparsity

from .conftest import tiny_config


def build(cls, **changes):
    torch.manual_seed(0)
    return cls(tiny_config(**changes)).double().eval()


def test_the_balance_loss_is_the_mean_over_expert_layers(ids):
    model = build(SortyardModel, num_hidden_layers=3, expert_layers=[True, False, True], balance_coef=1.0)
    loads = model(ids, output_statistics=True).expert_loads
    shares = loads / loads.sum(-1, keepdim=True)
    expected = (4 * (shares - 1 / 4).square().sum(-1)).mean()
    assert expected > 0
    torch.testing.assert_close(model(ids, output_statistics=True).aux_loss, expected.double(), rtol=1e-6, atol=0)


def test_balance_grows_with_the_share_of_targets_up_to_the_whole(ids):
    labels = torch.full_like(ids, -100)
    labels[:, :5] = ids[:, :5]
    model = build(SortyardForMaskedLM, balance_coef=1.0)
    parts = [model(ids, labels=labels, num_items_in_batch=n).aux_loss for n in (10, 20, 1000)]
    torch.testing.assert_close(torch.stack(parts), parts[0] * torch.tensor([1, 0.5, 0.01], dtype=torch.float64))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_pools_real_tokens_only(side, pooling, ids):
    model = build(SortyardForSequenceClassification, classifier_pooling=pooling, num_labels=3)
    alone = model(ids[:, :25]).logits
    pads, mask = torch.zeros(2, 15, dtype=torch.long), torch.ones(2, 25, dtype=torch.long)
    ends = (pads, ids[:, :25]), (pads, mask)
    padded, real = (torch.cat(pair if side == "left" else pair[::-1], 1) for pair in ends)
    torch.testing.assert_close(model(padded, real).logits, alone, rtol=0, atol=1e-12)


def test_the_two_poolings_differ(ids):
    cls, mean = (
        build(SortyardForSequenceClassification, classifier_pooling=name)(ids).logits for name in ("cls", "mean")
    )
    assert not torch.allclose(cls, mean)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_given_positions_are_used(positions, ids):
    model = build(SortyardModel, position_embedding_type=positions)
    plain = model(ids).last_hidden_state
    counted = model(ids, position_ids=torch.arange(40)[None]).last_hidden_state
    assert torch.equal(plain, counted)
    stretched = model(ids, position_ids=3 * torch.arange(40)[None]).last_hidden_state
    assert not torch.allclose(plain, stretched)


def test_only_distances_count_for_rotary_positions(ids):
    model = build(SortyardModel, attention="dense", num_experts=1)
    plain = model(ids).last_hidden_state
    moved = model(ids, position_ids=torch.arange(40)[None] + 50).last_hidden_state
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-9)


def test_generation_scores_the_last_positions_only(ids):
    model = build(SortyardForCausalLM, context="ema")
    whole = model(ids).logits
    assert whole.shape == (2, 40, 97)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["embeddings.dropout", "attention", "ffn"])
def test_hidden_dropout_acts_in_every_place(part, ids, monkeypatch):
    model = build(SortyardModel, hidden_dropout_prob=0.9, num_hidden_layers=1, norm_position="post").train()
    block = model.encoder.layers[0]
    torch.manual_seed(1)
    calls = []
    for name, dropout in (("block", block.dropout), ("embeddings", model.embeddings.dropout)):
        dropout.register_forward_hook(lambda module, args, out, name=name: calls.append((name, args[0], out)))
    model(ids)
    assert [name for name, _, _ in calls] == ["embeddings", "block", "block"]
    _, given, kept = calls[["embeddings.dropout", "attention", "ffn"].index(part)]
    assert 0.8 < (kept == 0).double().mean() < 0.95
    assert (given != 0).double().mean() > 0.99


def test_reported_sparsity_is_the_mean_share_of_pairs_left_out(ids):
    model = build(SortyardModel, num_hidden_layers=2, attention_layers=["bucket", "dense"])
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    spec = model.config.options().to_spec()
    kept = sum(n * n * (1 - expected_sparsity(spec, n, False)) for n in (40, 30))
    assert model(ids, mask, output_statistics=True).sparsity == pytest.approx(1 - kept / (40**2 + 30**2))
    assert model(ids, torch.zeros_like(mask), output_statistics=True).sparsity == 0.0
