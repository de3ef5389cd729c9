"""Experts by torch's grouped products, where pads cannot be cut off."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import grouped_mlp

TOKENS, REAL, WIDTH, EXPERTS = 12, 9, 16, 4


def _leaves_the_rest(product):
    """As the kernels of a GPU: rows behind the last run hold whatever was there."""

    def multiply(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
        out = product(rows, weights, offs=offs)
        out[int(offs[-1]) :] = torch.nan
        return out

    return multiply


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped products")
def test_pads_of_a_traced_graph_are_zero_and_read_no_expert(monkeypatch, bias):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    experts = torch.randint(0, EXPERTS, (TOKENS, 1), generator=generator)
    experts[REAL:] = EXPERTS  # nobody
    weights = draw(TOKENS, 1).masked_fill(experts == EXPERTS, 0)
    loads = torch.bincount(experts.flatten(), minlength=EXPERTS + 1)[:EXPERTS].float()
    routing = Routing(experts, weights, torch.zeros(TOKENS, EXPERTS), loads, TOKENS)  # a graph knows no other number
    nets = {"up": draw(EXPERTS, WIDTH, WIDTH), "down": draw(EXPERTS, WIDTH, WIDTH)}
    nets |= {"up_bias": draw(EXPERTS, WIDTH), "down_bias": draw(EXPERTS, WIDTH)} if bias else {}
    x = draw(TOKENS, WIDTH)
    truth = grouped_mlp(x, routing, **nets, activation="gelu", gated=False, backend="reference")
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr(F, "grouped_mm", _leaves_the_rest(F.grouped_mm))
    with torch.no_grad():
        found = grouped_mlp(x, routing, **nets, activation="gelu", gated=False, backend="grouped")
    assert torch.equal(found[REAL:], torch.zeros_like(found[REAL:]))
    torch.testing.assert_close(found, truth, atol=0.05, rtol=0.05)
