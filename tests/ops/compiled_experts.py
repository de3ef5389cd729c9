"""Compile experts with fullgraph, forward and backward, and compare; run by test_grouped_mlp_fused.

Whole layers at one length, and `grouped_mlp` at lengths that the compiler has not seen.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sortyard.model.configuration import SortyardConfig
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import ExpertOptions
from sortyard.ops import grouped_mlp, route
from sortyard.ops.segments import make_segments

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
WIDTH, INNER, EXPERTS = 16, 24, 5


def assert_same(found: list[Tensor], truth: list[Tensor], *, dtype: torch.dtype) -> None:
    for mine, theirs in zip(found, truth, strict=True):
        scale = max(theirs.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCES[dtype] * scale)


def run_layer(forward: Callable[[Tensor], tuple[Tensor, Tensor]], layer: ExpertLayer, hidden: Tensor) -> list[Tensor]:
    layer.zero_grad()
    hidden = hidden.detach().requires_grad_()
    out, balance = forward(hidden)
    (out.square().sum() + balance).backward()
    return [out, hidden.grad, *(parameter.grad for parameter in layer.parameters())]


def compare_layers(dtype: torch.dtype, *, gated: bool, backend: str, autocast: bool = False) -> None:
    torch.manual_seed(0)
    options = ExpertOptions(moe_intermediate_size=INNER)
    layer = ExpertLayer(options, hidden_size=WIDTH, hidden_act="gelu", gated=gated, bias=not gated).to(dtype)
    layer.reset_parameters(0.3)
    layer.config = SortyardConfig(experts_implementation="sortyard")  # as a model sets it
    mask = torch.arange(20)[None] < torch.tensor([[20], [13]])
    segments = make_segments(2, 20, key_padding_mask=mask, device="cpu")

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out, record = layer(hidden, segments=segments)
        return out, record.balance

    hidden = torch.randn(2, 20, WIDTH).to(dtype)
    compiled = torch.compile(forward, fullgraph=True, backend=backend)
    found, truth = run_layer(compiled, layer, hidden), run_layer(forward, layer, hidden)
    assert_same(found, truth, dtype=torch.bfloat16 if autocast else dtype)


def compare_lengths(dtype: torch.dtype, *, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / 4).to(dtype).requires_grad_()

    up, down = draw(EXPERTS, INNER, WIDTH), draw(EXPERTS, WIDTH, INNER)

    def forward(x: Tensor, scores: Tensor) -> Tensor:
        routing = route(scores, num_groups=1, num_groups_per_tok=1, num_experts_per_tok=2)
        return grouped_mlp(x, routing, up=up, down=down)

    compiled = torch.compile(forward, fullgraph=True, backend=backend, dynamic=True)
    for num_tokens in (40, 7, 133):
        x, scores = draw(num_tokens, WIDTH), torch.rand(num_tokens, EXPERTS, generator=generator).requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if num_tokens != 40 else "default"):
            mine = compiled(x, scores)
        truth = forward(x, scores)
        leaves = [x, scores, up, down]
        found, expected = (torch.autograd.grad(out.float().square().sum(), leaves) for out in (mine, truth))
        assert_same([mine, *found], [truth, *expected], dtype=dtype)


if __name__ == "__main__":
    name = sys.argv[1]
    for chosen in TOLERANCES:
        for is_gated in (False, True):
            compare_layers(chosen, gated=is_gated, backend=name)
        compare_lengths(chosen, backend=name)
    compare_layers(torch.float32, gated=True, backend=name, autocast=True)
