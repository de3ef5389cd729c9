"""Experts by torch's grouped products, where pads cannot be cut off."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import grouped_mlp

TOKENS, REAL, WIDTH, EXPERTS = 12, 9, 16, 4


def _leaves_the_rest(product):
    """As the kernels of a GPU: rows behind the last run hold whatever was there, in gradients, too."""

    class Multiply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
            ctx.save_for_backward(rows, weights, offs)
            out = product(rows, weights, offs=offs).clone()
            out[int(offs[-1]) :] = torch.nan
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
            rows, weights, offs = ctx.saved_tensors
            end = int(offs[-1])
            with torch.enable_grad():
                leaves = rows[:end].detach().requires_grad_(), weights.detach().requires_grad_()
                row_grad, weight_grad = torch.autograd.grad(product(*leaves, offs=offs), leaves, grad[:end])
            return torch.cat([row_grad, torch.full_like(rows[end:], torch.nan)]), weight_grad, None

    def multiply(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
        return Multiply.apply(rows, weights, offs) if weights.ndim == 3 else product(rows, weights, offs=offs)

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
    leaves = [x.requires_grad_(), *(net.requires_grad_() for net in nets.values())]

    def run(backend: str) -> list[Tensor]:
        out = grouped_mlp(x, routing, **nets, activation="gelu", gated=False, backend=backend)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    truth = run("reference")
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr(F, "grouped_mm", _leaves_the_rest(F.grouped_mm))
    found = run("grouped")
    for rows in found[:2]:  # outputs, and the gradient of what went in
        assert torch.equal(rows[REAL:], torch.zeros_like(rows[REAL:]))
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.01 * float(theirs.abs().max()), rtol=0.05)
