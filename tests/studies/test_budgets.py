"""What is skipped before it is tried: calls whose time or memory is predicted to be over the budget."""

from dataclasses import replace

import pytest

from sortyard.studies.bench import budgets
from sortyard.studies.bench.budgets import Budget, refusal
from sortyard.studies.bench.cases import Case
from sortyard.studies.bench.sides import find_sides

CASE = Case(length=16_384, dtype="fp32", direction="forward", heads=8, head_width=64, seed=0, device="cpu")
SIDES = find_sides("cpu")


def cells_with(seconds: float, num_bytes: int | None = None) -> dict:
    record = {"median_seconds": seconds, "peak_extra_bytes": num_bytes}
    sides = dict.fromkeys(SIDES, record)
    return {"fp32/forward/8192": {"length": 8192, "dtype": "fp32", "direction": "forward", "sides": sides}}


def test_quadratic_time_is_four_times_that_of_half_the_length() -> None:
    budget = Budget(call_seconds=10)
    assert "predicted to take 12 s a call" in refusal(SIDES["dense"], CASE, cells=cells_with(3.0), budget=budget)
    assert refusal(SIDES["dense"], CASE, cells=cells_with(2.4), budget=budget) == ""
    assert refusal(SIDES["tree-default-cpu"], CASE, cells=cells_with(3.0), budget=budget) == ""


def test_other_lines_and_longer_lengths_predict_nothing() -> None:
    short = replace(CASE, length=512)
    assert refusal(SIDES["dense"], short, cells=cells_with(1e6), budget=Budget()) == ""
    other = replace(CASE, dtype="bf16", length=2048)
    assert refusal(SIDES["dense"], other, cells=cells_with(1e6), budget=Budget()) == ""


def test_without_a_shorter_length_a_trial_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_trial_seconds", lambda side, case: 2.0 if case.length == 2048 else None)
    assert "take 128 s" in refusal(SIDES["dense"], CASE, cells={}, budget=Budget(call_seconds=100))


def test_memory_over_the_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "free_bytes", lambda device: 20 * 10**9)
    assert "17.2 GB" in refusal(SIDES["materialised"], CASE, cells=cells_with(0.1), budget=Budget())
    needs = cells_with(0.1, 8 * 10**9)
    assert "more than 60% of the free 20.0 GB" in refusal(SIDES["dense"], CASE, cells=needs, budget=Budget())
