import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from sortyard.training.metrics import Window, experts_used, load_shares, peak_memory_bytes, utilisation
from sortyard.training.step import StepResult


@pytest.mark.parametrize(
    ("loads", "expected"),
    [([[5, 5, 5, 5]], 1.0), ([[9, 0, 0, 0]], 0.25), ([[1, 1, 1, 1], [3, 3, 0, 0]], 0.5), ([[0, 0]], 0.5)],
    ids=["even", "one expert", "worst layer counts", "no tokens"],
)
def test_utilisation(loads, expected):
    assert utilisation(np.array(loads, dtype=float)) == pytest.approx(expected)


def test_experts_used_is_of_the_worst_layer():
    assert experts_used(np.array([[1.0, 1, 1], [0, 2, 0]])) == 1


def test_shares_of_a_layer_without_load_are_zero():
    assert load_shares(np.array([[1.0, 3], [0, 0]])).tolist() == [[0.25, 0.75], [0, 0]]


def test_window_averages_over_updates_and_survives_json():
    window = Window()
    loads = torch.tensor([[1.0, 2.0]])
    window.add(
        StepResult("updated", 0.1, task_loss=1.0, balance_loss=0.5, num_tokens=10, expert_loads=loads), seconds=1
    )
    window.add(StepResult("bad", 0.1, task_loss=float("nan"), num_tokens=10), seconds=1)
    window = Window(**json.loads(json.dumps(asdict(window))))
    window.add(StepResult("updated", 0.1, task_loss=0.1, num_tokens=10, expert_loads=loads), seconds=1)
    averages = window.averages()
    assert averages["loss"] == pytest.approx(0.8)
    assert averages["tokens_per_second"] == 10
    assert window.loads().tolist() == [[2.0, 4.0]]


def test_window_without_updates_holds_nulls():
    assert set(Window().averages().values()) == {None}


def test_peak_memory_is_in_bytes():
    assert 10**7 < peak_memory_bytes(torch.device("cpu")) < 10**12
