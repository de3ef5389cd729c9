"""Experts and contexts of ONNX files beside the library's own: both operators, exported by themselves."""

from pathlib import Path

import torch
from torch import Tensor, nn

import sortyard.model.experts.context  # noqa: F401 - registers the operator
from sortyard.interop.onnx.program import load_onnx, write_program
from sortyard.ops.grouped_mlp import ACTIVATIONS
from sortyard.ops.segments import make_segments


class Contexts(nn.Module):
    """All kinds at once: an export takes seconds."""

    def forward(self, hidden: Tensor, ids: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        kinds = (("mean", 0.0), ("mean", 1.0), ("running_mean", 0.0), ("ema", 0.8))
        return tuple(torch.ops.sortyard.expert_context(hidden, ids, positions, *kind) for kind in kinds)


class Experts(nn.Module):
    """Every activation, gated and with biases in turns; expert 3 gets nobody, and number 5 is a pad's."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down, self.up_bias, self.down_bias = (
            nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((5, 12, 8), (5, 8, 6), (5, 12), (5, 8))
        )

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._mix(x, experts, weights, *case) for case in CASES)

    def _mix(self, x: Tensor, experts: Tensor, weights: Tensor, name: str, is_gated: bool, has_bias: bool) -> Tensor:
        inner = 12 if is_gated else 6
        biases = (self.up_bias[:, :inner], self.down_bias) if has_bias else (None, None)
        matrices = (self.up[:, :inner], self.down, *biases)
        return torch.ops.sortyard.expert_mlp(x, experts, weights, *matrices, name, is_gated, None)[0]


CASES = [(name, n % 2 == 0, n % 3 == 0) for n, name in enumerate(ACTIVATIONS)]


def compare(module: nn.Module, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    with torch.no_grad():
        wanted = module(**inputs)
        write_program(torch.export.export(module, (), inputs), tmp_path / "model.onnx", longest=64)
    found = load_onnx(tmp_path / "model.onnx")(**inputs)
    for value, truth in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(value, truth, atol=2e-6, rtol=1e-6)


def test_contexts(tmp_path: Path) -> None:
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, 6:], mask[2], mask[3, 0], mask[3, 5] = False, False, False, False
    segments = make_segments(4, 9, key_padding_mask=mask, device="cpu")
    hidden = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(1))
    compare(Contexts(), {"hidden": hidden, "ids": segments.ids, "positions": segments.positions}, tmp_path)


def test_experts(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    experts = torch.tensor([[0, 1], [4, 2], [5, 5], [1, 0], [2, 4], [0, 4], [5, 5]])
    weights = torch.rand(7, 2, generator=generator) * (experts < 5)
    x = torch.randn(7, 8, generator=generator)
    compare(Experts(), {"x": x, "experts": experts, "weights": weights}, tmp_path)
