"""The whole layer: invariances, its limits, upcycling and initialisation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import ExpertOptions
from sortyard.ops.segments import make_segments

WIDTH = 16
FLAT = {"num_expert_groups": 1, "num_groups_per_tok": 1}


def states(batch: int, length: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("open_experts", ["all alike", "one"])
def test_one_open_expert_is_a_plain_mlp(make_layer, gated, open_experts):
    count = {"num_experts": 4, "num_experts_per_tok": 2} if open_experts == "all alike" else {"num_experts": 1}
    layer = make_layer(gated=gated, bias=True, dtype=torch.float64, **{"num_experts_per_tok": 1, **FLAT, **count})
    with torch.no_grad():
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.copy_(parameter[:1].expand_as(parameter) + (0.1 if name.endswith("_bias") else 0.0))
    hidden = states(2, 9)
    found, _ = layer(hidden, segments=make_segments(2, 9, device="cpu"))
    up, up_bias = (layer.gate_up_proj, layer.gate_up_proj_bias) if gated else (layer.up_proj, layer.up_proj_bias)
    inner = F.linear(hidden, up[0], up_bias[0])
    inner = F.gelu(inner[..., :24]) * inner[..., 24:] if gated else F.gelu(inner)
    torch.testing.assert_close(found, F.linear(inner, layer.down_proj[0], layer.down_proj_bias[0]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("context", ["mean", "running_mean", "ema", "none"])
def test_padding_and_neighbours_never_change_a_token(make_layer, rows, context):
    layer = make_layer(context=context, dtype=torch.float64, bias=True)
    hidden = states(3, 20)
    alone, _ = layer(hidden[1:2, :11], segments=make_segments(1, 11, device="cpu"))
    found, record = layer(hidden, segments=rows(20, 11, 4, length=20))
    torch.testing.assert_close(found[1:2, :11], alone, atol=1e-12, rtol=0)
    assert (found[1, 11:] == 0).all()
    assert record.loads.sum() == 2 * (20 + 11 + 4)


@pytest.mark.parametrize("context", ["mean", "running_mean", "ema", "none"])
def test_packing_never_changes_a_token(make_layer, context):
    layer = make_layer(context=context, dtype=torch.float64)
    hidden = states(1, 30)
    packed, _ = layer(hidden, segments=make_segments(1, 30, cu_seqlens=torch.tensor([0, 12, 27]), device="cpu"))
    for start, end in [(0, 12), (12, 27)]:
        alone, _ = layer(hidden[:, start:end], segments=make_segments(1, end - start, device="cpu"))
        torch.testing.assert_close(packed[:, start:end], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("context", ["running_mean", "ema", "none"])
def test_the_future_never_changes_the_past(make_layer, context):
    # Compared within rounding: the experts' other tokens change how many rows a product has, and so its sums.
    layer = make_layer(context=context, dtype=torch.float64)
    segments, hidden = make_segments(1, 50, device="cpu"), states(1, 50)
    edited = hidden.clone()
    edited[:, 20:] *= -3
    before, first = layer(hidden, segments=segments)
    after, second = layer(edited, segments=segments)
    assert torch.equal(first.experts[:20], second.experts[:20])
    torch.testing.assert_close(before[:, :20], after[:, :20], atol=1e-12, rtol=0)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 1e-3


def test_shuffled_context_listens_to_a_neighbour(make_layer):
    layer = make_layer(context="shuffled", dtype=torch.float64)
    hidden, segments = states(2, 12), make_segments(2, 12, device="cpu")
    edited = hidden.clone()
    edited[1] += 5
    assert (layer(hidden, segments=segments)[0][0] - layer(edited, segments=segments)[0][0]).abs().max() > 1e-4


def test_upcycling_with_straight_through_weights_keeps_the_function_and_a_live_router():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
    options = ExpertOptions(
        num_experts=16,
        num_expert_groups=4,
        num_groups_per_tok=4,
        num_experts_per_tok=4,
        moe_intermediate_size=16,
        routing_weights="straight_through",
    )
    layer = ExpertLayer(options, hidden_size=WIDTH, hidden_act="gelu", gated=False, bias=True)
    with torch.no_grad():
        layer.up_proj.copy_(dense[0].weight.view(4, 16, WIDTH).repeat_interleave(4, dim=0))
        layer.up_proj_bias.copy_(dense[0].bias.view(4, 16).repeat_interleave(4, dim=0))
        layer.down_proj.copy_(dense[2].weight.view(WIDTH, 4, 16).transpose(0, 1).repeat_interleave(4, dim=0))
        layer.down_proj_bias.copy_((dense[2].bias / 4).expand(16, -1))
    hidden = states(2, 33, dtype=torch.float32)
    found, _ = layer(hidden, segments=make_segments(2, 33, device="cpu"))
    expected = dense(hidden)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    found.square().sum().backward()
    assert layer.router.gate.grad.norm() > 0.1


def test_activation_checkpointing_changes_nothing_and_counts_once(make_layer):
    layer, segments = make_layer(dtype=torch.float64), make_segments(2, 9, device="cpu")
    found = {}
    for use_reentrant in (None, False):
        layer.zero_grad()
        hidden = states(2, 9)
        run = (
            layer
            if use_reentrant is None
            else lambda h, segments: checkpoint(layer, h, segments=segments, use_reentrant=False)
        )
        out, record = run(hidden, segments=segments)
        (out.sum() + record.balance).backward()
        found[use_reentrant] = [record.loads, *(parameter.grad.clone() for parameter in layer.parameters())]
    for plain, saved in zip(found[None], found[False], strict=True):
        assert torch.equal(plain, saved)


def test_autocast_lowers_the_experts_and_not_the_choice(make_layer):
    layer, segments = make_layer(bias=True), make_segments(2, 9, device="cpu")
    hidden = states(2, 9, dtype=torch.float32)
    plain, first = layer(hidden, segments=segments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered, second = layer(hidden, segments=segments)
    assert lowered.dtype == torch.bfloat16
    assert torch.equal(first.experts, second.experts)
    assert (lowered.float() - plain).abs().max() < 0.02 * plain.abs().max()


def test_experts_compared_one_by_one_are_what_routing_mixes(make_layer):
    layer = make_layer(gated=True, bias=True, dtype=torch.float64)
    hidden = states(1, 9)
    found, record = layer(hidden, segments=make_segments(1, 9, device="cpu"))
    every = layer.expert_outputs(hidden[0])  # [E, N, D]
    mixed = torch.stack([record.weights[n] @ every[record.experts[n], n] for n in range(9)])
    torch.testing.assert_close(found[0], mixed, atol=1e-12, rtol=0)


@pytest.mark.parametrize("router", ["context", "frozen_random", "token_hash"])
def test_every_tensor_can_be_made_again_after_the_meta_device(router):
    def build() -> ExpertLayer:
        options = ExpertOptions(router=router, moe_intermediate_size=24, router_seed=3)
        return ExpertLayer(options, hidden_size=WIDTH, hidden_act="gelu", gated=True, bias=True, layer_index=2)

    with torch.device("meta"):
        empty = build()
    layer = empty.to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(float("nan"))
    layer.reset_parameters(0.02)
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())
    fresh = build().state_dict()
    for name, tensor in layer.state_dict().items():
        if name not in dict(layer.named_parameters()):
            assert torch.equal(tensor, fresh[name])


def test_hidden_act_is_checked_when_the_layer_is_built():
    with pytest.raises(ValueError, match="unknown to experts"):
        ExpertLayer(ExpertOptions(), hidden_size=WIDTH, hidden_act="mish", gated=False, bias=False)


def test_update_bias_follows_the_rate(make_layer):
    layer = make_layer(bias_update_rate=0.01)
    layer.update_bias(torch.tensor([8.0, 0, 0, 0, 0, 0, 0, 0]))
    assert layer.router.expert_bias[0] < 0
    still = make_layer()
    still.update_bias(torch.tensor([8.0, 0, 0, 0, 0, 0, 0, 0]))
    assert (still.router.expert_bias == 0).all()
