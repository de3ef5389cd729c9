"""Routers: the gate's formula, precision, bias and the controls."""

import pytest
import torch

from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.router import ContextRouter, make_router
from sortyard.ops.segments import make_segments

D = 8


def build(*, seed: int = 0, layer_index: int = 0, **options):
    torch.manual_seed(seed)
    router = make_router(ExpertOptions(**options), hidden_size=D, layer_index=layer_index)
    router.reset_parameters(0.5)
    return router


def inputs(batch: int = 2, length: int = 10):
    generator = torch.Generator().manual_seed(3)
    hidden, context = torch.randn(2, batch, length, D, generator=generator)
    token_ids = torch.randint(0, 1000, (batch, length), generator=generator)
    return hidden, context, token_ids, make_segments(batch, length, device="cpu")


def test_scores_are_the_sigmoid_of_token_and_context():
    router = build()
    hidden, context, token_ids, segments = inputs()
    expected = (torch.cat([hidden, context], dim=-1) @ router.gate.T).sigmoid().flatten(0, 1)
    torch.testing.assert_close(router(hidden, context, token_ids, segments).scores, expected)


def test_gate_is_float32_under_autocast_and_for_bfloat16_weights():
    router = build()
    hidden, context, token_ids, segments = inputs()
    plain = router(hidden, context, token_ids, segments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router(hidden, context, token_ids, segments).scores, plain.scores)
    lowered = router.to(torch.bfloat16)(hidden.bfloat16(), context, token_ids, segments)
    assert lowered.scores.dtype == torch.float32


def test_group_gate_sees_the_context_alone_and_learns():
    router = build(group_gate="context")
    hidden, context, token_ids, segments = inputs()
    context = context[:, :1].expand_as(context)
    routing = router(hidden, context, token_ids, segments)
    groups = (routing.experts // 2).sort(dim=1).values.view(2, 10, 2)
    assert (groups == groups[:, :1]).all()
    routing.weights[:, 0].sum().backward()
    assert router.group_gate.grad.abs().max() > 0


def test_bias_moves_against_the_loads_and_stays_centred():
    router = build()
    router.update_bias(torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1]), 0.01)
    assert router.expert_bias[0] < 0 < router.expert_bias[1]
    torch.testing.assert_close(router.expert_bias.sum(), torch.tensor(0.0), atol=1e-7, rtol=0)
    torch.testing.assert_close(router.expert_bias[1] - router.expert_bias[0], torch.tensor(0.02))
    before = router.expert_bias.clone()
    router.update_bias(torch.arange(8.0), 0.0)
    assert torch.equal(router.expert_bias, before)


def test_even_loads_leave_the_bias_alone():
    router = build()
    router.update_bias(torch.full((8,), 5.0), 0.1)
    assert (router.expert_bias == 0).all()


def test_repeated_updates_even_out_a_skewed_gate():
    router = build(context="none", num_expert_groups=1, num_groups_per_tok=1, num_experts_per_tok=1)
    hidden, _, token_ids, segments = inputs(8, 64)
    hidden = hidden + 1.0
    first = router(hidden, None, token_ids, segments).loads
    for _ in range(300):
        router.update_bias(router(hidden, None, token_ids, segments).loads, 0.005)
    last = router(hidden, None, token_ids, segments).loads
    assert first.max() > 2 * last.max()
    assert last.min() > 0


def test_forward_changes_no_state():
    router = build()
    before = {name: value.clone() for name, value in router.state_dict().items()}
    router(*inputs())
    assert all(torch.equal(before[name], value) for name, value in router.state_dict().items())


def test_frozen_router_has_no_parameters_and_is_fixed_by_its_seed():
    first, second = build(router="frozen_random", seed=1), build(router="frozen_random", seed=2)
    assert not list(first.parameters())
    assert torch.equal(first.gate, second.gate)
    assert set(first.state_dict()) == {"gate", "expert_bias"}
    assert not torch.equal(first.gate, build(router="frozen_random", router_seed=1).gate)
    assert not torch.equal(first.gate, build(router="frozen_random", layer_index=1).gate)
    assert isinstance(first, ContextRouter)


def test_token_hash_depends_on_the_token_alone():
    router = build(router="token_hash")
    hidden, _, token_ids, segments = inputs()
    routing = router(hidden, None, token_ids, segments)
    again = router(torch.randn_like(hidden), None, token_ids, segments)
    assert torch.equal(routing.experts, again.experts)
    assert (routing.weights == 0.5).all()
    other = build(router="token_hash", router_seed=5)(hidden, None, token_ids, segments)
    assert not torch.equal(routing.experts, other.experts)
    with pytest.raises(ValueError, match="pass input_ids"):
        router(hidden, None, None, segments)


def test_token_hash_spreads_the_vocabulary_evenly():
    router = build(router="token_hash", num_experts=32, num_expert_groups=4)
    token_ids = torch.arange(32768).view(1, -1)
    loads = router(torch.zeros(1, 32768, D), None, token_ids, make_segments(1, 32768, device="cpu")).loads
    assert (loads / loads.mean() - 1).abs().max() < 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_bias_moves_in_a_model_of_16_bits_too(dtype):
    loads = torch.tensor([70_001.0, *[70_000.0] * 7])  # alike in 16 bits, or beyond them
    wide, short = build(), build().to(dtype)
    for _ in range(400):
        wide.update_bias(loads, 0.001)
        short.update_bias(loads, 0.001)
    assert short.gate.dtype == dtype
    assert torch.equal(short.expert_bias, wide.expert_bias)
    assert torch.equal(short.float().expert_bias, wide.expert_bias)
    assert short.double().expert_bias.dtype == torch.float64
