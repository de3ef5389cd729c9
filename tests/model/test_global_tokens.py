"""Tokens that the caller marks reach the bucket layers' every query."""

import copy

import pytest
import torch

from sortyard.model.heads import SortyardForMaskedLM
from sortyard.model.modeling import SortyardModel
from sortyard.ops import make_segments
from sortyard.ops.bucket_attention.groups import make_groups

from .conftest import tiny_config

ROUNDS = {"selection": "rounds", "num_experts": 1, "num_hidden_layers": 1, "num_global_tokens": 0, "bucket_size": 2}


def build(cls=SortyardModel, **changes):
    torch.manual_seed(0)
    return cls(tiny_config(**(ROUNDS | changes))).double().eval()


@pytest.fixture
def marked() -> torch.Tensor:
    marked = torch.zeros(2, 40, dtype=torch.long)
    marked[0, 20], marked[1, 33] = 1, 1
    return marked


@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_every_query_reads_a_marked_token(selection, ids, marked):
    # Small weights leave the first layer's hashes alone, so a marked token's influence is the mark's own.
    model = build(selection=selection)
    plain = model(ids, output_attentions=True).attentions[0]
    found = model(ids, global_tokens=marked, output_attentions=True).attentions[0]
    for row, at in ((0, 20), (1, 33)):
        assert (found[row, :, :, at] > 0).all()
    if selection == "rounds":
        assert not (plain[0, :, :, 20] > 0).all()
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("changes", [{}, {"selection": "tree"}, {"causal": True}], ids=["rounds", "tree", "causal"])
def test_the_fast_path_and_the_weights_agree(changes, ids, marked):
    model = build(**changes, num_hidden_layers=2)
    mask = torch.ones_like(ids)
    mask[0, 31:] = 0
    fast = model(ids, mask, global_tokens=marked)
    slow = model(ids, mask, global_tokens=marked, output_attentions=True)
    real = mask.bool()
    torch.testing.assert_close(fast.last_hidden_state[real], slow.last_hidden_state[real], rtol=0, atol=1e-11)
    assert not torch.equal(fast.last_hidden_state, model(ids, mask).last_hidden_state)


def test_heads_and_checkpointing_pass_them_on(ids, marked):
    losses = []
    for checkpointing in (False, True):
        model = build(SortyardForMaskedLM).train()
        if checkpointing:
            # transformers renamed it during 5.x
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            next(getattr(model, name) for name in names if hasattr(model, name))()
        outputs = model(ids, labels=ids, global_tokens=marked)
        outputs.loss.backward()
        losses.append((outputs.loss.item(), model.decoder.weight.grad.clone()))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    assert losses[0][0] != build(SortyardForMaskedLM)(ids, labels=ids).loss.item()


def test_marking_the_first_tokens_is_num_global_tokens(ids):
    counted = build(num_global_tokens=2)
    marked = torch.zeros_like(ids)
    marked[:, :2] = 1
    model = build()
    model.load_state_dict(copy.deepcopy(counted.state_dict()))
    assert torch.equal(model(ids, global_tokens=marked).last_hidden_state, counted(ids).last_hidden_state)


def test_a_mark_at_a_pad_is_no_token(ids, marked):
    model, mask = build(), torch.ones_like(ids)
    mask[:, 15:] = 0
    assert torch.equal(model(ids, mask, global_tokens=marked).last_hidden_state, model(ids, mask).last_hidden_state)


def test_marks_of_another_shape_are_refused(ids):
    segments, spec = make_segments(2, 40, device="cpu"), build().config.options().to_spec()
    with pytest.raises(ValueError, match=r"global_tokens has shape \(1, 40\); it must be \[B, T\] = \(2, 40\)"):
        make_groups(segments, spec, causal=False, global_tokens=torch.ones(1, 40, dtype=torch.bool))
