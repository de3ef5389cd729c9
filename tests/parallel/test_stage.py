"""A pipeline stage by itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import sortyard.parallel.data  # noqa: F401 - which says how a router's result is taken apart
from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel.stage import Shares, Stage


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []
        self.encoder = SimpleNamespace(layers=[], num_bucket_layers=0)

    def forward(self, **_: Any) -> SimpleNamespace:
        self.drawn.append(float(torch.rand(())))
        states = torch.zeros(1, 1, 1)
        return SimpleNamespace(last_hidden_state=states, aux_loss=None, expert_loads=None, sparsity=None)


def _drawn(index: int, *, seeds: tuple[int, ...]) -> list[float]:
    body = _Body()
    model = nn.Module()
    model.base_model = body
    stage = Stage(
        model, index=index, num_stages=4, first_expert_layer=0, count_targets=lambda _: 1,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )  # fmt: skip
    batches = [{"input_ids": torch.zeros(1, 1), "labels": torch.zeros(1, 1)} for _ in seeds]
    stage.load(batches, Shares(1, (1,) * len(seeds), 1.0, seeds))
    for number in range(len(seeds)):
        stage(torch.zeros(1, 1, 1), torch.zeros(1), micro=torch.tensor(number))
    return body.drawn


def test_stages_drop_different_units_and_the_first_those_of_one_process() -> None:
    drawn = [_drawn(index, seeds=(5, 900)) for index in range(3)]
    assert len({value for each in drawn for value in each}) == 6
    assert drawn == [_drawn(index, seeds=(5, 900)) for index in range(3)]
    torch.manual_seed(5)
    assert drawn[0][0] == pytest.approx(float(torch.rand(())))


def test_gradients_are_found_in_what_a_router_returns() -> None:
    """FSDP2 of torch 2.11 looks through what pytrees take apart, and gathers no weights for others' backward passes."""
    weights = torch.zeros(2, 1, requires_grad=True)
    routing = Routing(torch.zeros(2, 1, dtype=torch.long), weights, torch.zeros(2, 3), torch.zeros(3), num_tokens=2)
    assert any(leaf is weights for leaf in tree_leaves(routing))
