"""A pipeline stage by itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

import sortyard.parallel.data  # noqa: F401 - which says how a router's result is taken apart
from sortyard.errors import InputError
from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel.mesh import Layout
from sortyard.parallel.occupancy import Occupancy
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.schedule import Pipeline
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


class _Failing(nn.Module):
    index, is_first, is_last = 0, True, False

    def forward(self, *_: Any, **__: Any) -> None:
        raise InputError("what the model says")


def test_what_fails_in_a_stage_is_told_as_it_is() -> None:
    """torch's pipelines tell the shapes of what went in instead."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        layout = Layout.make(ParallelOptions(pp=2, schedule="gpipe"), device=torch.device("cpu"))
        stage: Any = _Failing()
        pipeline = Pipeline(
            [stage], layout=layout, num_micro_batches=2, shape=(1, 4, 8), dtype=torch.float32,
            occupancy=Occupancy(layout.device),
        )  # fmt: skip
        with pytest.raises(InputError, match="what the model says"):
            pipeline.run()
    finally:
        dist.destroy_process_group()
