"""bf16 autocast: the choices of a whole model are made in float32 from what they are given."""

import pytest
import torch

from sortyard.model.encoder import Encoder
from sortyard.model.experts.context import make_context
from sortyard.model.experts.options import ExpertOptions
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.ops import make_segments

from .conftest import tiny_config


@pytest.mark.parametrize("context", ["mean", "running_mean", "ema", "shuffled"])
def test_the_context_is_float32_under_autocast(context):
    hidden = torch.randn(2, 70, 8, generator=torch.Generator().manual_seed(0))
    segments, run = make_segments(2, 70, device="cpu"), make_context(ExpertOptions(context=context))
    plain = run(hidden, segments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(hidden, segments), plain)


@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_gates_loads_states_and_losses_are_float32_under_autocast(selection, ids):
    torch.manual_seed(0)
    model = SortyardForMaskedLM(tiny_config(selection=selection)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(ids, labels=ids, output_router_logits=True, output_hidden_states=True)
    assert {scores.dtype for scores in outputs.router_logits} == {torch.float32}
    assert {states.dtype for states in outputs.hidden_states} == {torch.float32}
    assert outputs.expert_loads.dtype == outputs.loss.dtype == outputs.aux_loss.dtype == torch.float32
    outputs.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_attention_weights_under_autocast_still_add_up_to_one(ids):
    torch.manual_seed(0)
    model = SortyardForMaskedLM(tiny_config()).eval()
    seen = []
    for layer in next(m for m in model.modules() if isinstance(m, Encoder)).layers:
        weigh = layer.attention.core.weights
        layer.attention.core.weights = lambda *args, weigh=weigh, **kw: seen.append(weigh(*args, **kw)) or seen[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids, output_attentions=True)
    assert [weights.dtype for weights in seen] == [torch.float32] * 2
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 40), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["bucket", "dense"])
def test_dropout_acts_on_materialised_weights_in_training_only(attention, ids):
    torch.manual_seed(0)
    config = tiny_config(attention=attention, num_experts=1, attention_probs_dropout_prob=0.5)
    model = SortyardForMaskedLM(config).double()
    fast, slow = (model.eval()(ids, output_attentions=flag).logits for flag in (False, True))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)
    first, second = (model.train()(ids, output_attentions=True) for _ in range(2))
    assert not torch.equal(first.logits, second.logits)
    sums = first.attentions[0].sum(-1)  # the weights are returned as they were before dropping
    torch.testing.assert_close(sums, torch.ones_like(sums))
