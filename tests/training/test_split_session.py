"""What a process of several reads of a checkpoint."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.parallel.apply import Held
from sortyard.parallel.placement import Placement
from sortyard.training.split_session import SplitSession


class _Stored:
    """A checkpoint of one parameter."""

    def names(self, kind: str) -> list[str]:
        return ["weight"] if kind == "model" else [f"{name}/weight" for name in ("step", "exp_avg", "exp_avg_sq")]

    def read(self, _: str, name: str, box: Any = None) -> Tensor:
        return torch.tensor(7.0) if name.startswith("step") else torch.ones(2, 3)


def test_all_of_the_optimizers_state_is_where_its_parameter_is() -> None:
    parameter = nn.Parameter(torch.empty(2, 3, device="meta"))
    held = Held("weight", parameter, Placement.of(parameter), 0, is_owned=True)
    session: Any = SimpleNamespace(
        split=SimpleNamespace(held=lambda: [held]),
        optimizer=SimpleNamespace(state={}),
        _check_names=lambda *_: None,
    )
    SplitSession._load(session, _Stored())  # type: ignore[arg-type]
    state = session.optimizer.state[parameter]
    assert {name: value.device.type for name, value in state.items()} == {
        "step": "meta", "exp_avg": "meta", "exp_avg_sq": "meta",
    }  # fmt: skip
