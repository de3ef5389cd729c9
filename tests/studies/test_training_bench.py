"""What a step of `bench training` is made of, and what is said of it."""

import time

import pytest
import torch

from sortyard.studies.bench.memory import peak_allocated
from sortyard.studies.bench.runner import alternate
from sortyard.studies.bench.training import compare_gradients
from sortyard.studies.bench.training_cases import (
    TrainingCase,
    equal_rows,
    make_model,
    mixed_lengths,
    packed_rows,
    padded_rows,
)
from sortyard.studies.bench.training_sides import find_sides
from sortyard.studies.bench.training_summary import summarise

CASE = TrainingCase(
    topic="packing", length=128, tokens=2048, hidden_size=192, layers=2, vocabulary=97, seed=3, device="cpu"
)


@pytest.mark.parametrize("portions", [1, 2, 8])
def test_portions_are_the_same_rows_with_unequal_targets(portions: int) -> None:
    whole, parts = equal_rows(CASE)[0], equal_rows(CASE, micro_batches=portions)
    assert len(parts) == portions
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
    assert len({int((part["labels"] != -100).sum()) for part in parts}) == portions


def test_padded_and_packed_rows_hold_the_same_documents() -> None:
    lengths = mixed_lengths(CASE)
    padded, packed = padded_rows(CASE)[0], packed_rows(CASE)[0]
    assert padded["attention_mask"].sum(1).tolist() == lengths
    assert int(packed["attention_mask"].sum()) == sum(lengths)
    assert packed["input_ids"].numel() - sum(lengths) < CASE.length
    assert set(range(0, packed["input_ids"].numel() + 1, CASE.length)) <= set(packed["cu_seqlens"].tolist())
    assert max(packed["cu_seqlens"].diff()) <= CASE.length
    assert max(lengths) == CASE.length < sum(lengths) / 2


def test_the_twin_has_the_same_active_parameters_but_for_the_gates() -> None:
    dense, sparse = (find_sides("twin")[name].facts(CASE) for name in ("dense", "sparse"))
    assert dense["active_parameters"] == dense["parameters"]
    assert sparse["active_parameters"] == pytest.approx(dense["parameters"], rel=0.02)
    assert sparse["parameters"] > 2 * sparse["active_parameters"]


def test_gradients_in_portions_are_those_of_one_batch() -> None:
    found = compare_gradients(CASE)
    assert found["relative_error"] < 1e-14
    assert found["worst_relative_error"] < 1e-11
    assert len(found["targets"]) == 8


def test_peak_of_allocations_is_exact() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        return second * 2

    assert peak_allocated(call, device="cpu").num_bytes == pytest.approx(2 * 4_000_000, rel=0.001)


def test_another_clock_tells_the_seconds() -> None:
    runs = alternate({"sleeps": lambda: time.sleep(0.05)}, repetitions=2, warmup=0, clock=time.process_time)
    assert max(runs["sleeps"]) < 0.04


def record(*, seconds: float, peak: int, tokens: int = 100) -> dict:
    return {
        "seconds": [seconds], "times_as_long": {"median": seconds}, "peak_extra_bytes": peak, "state_bytes": 100,
        "real_tokens": tokens,
    }  # fmt: skip


def test_claims_stand_beside_what_was_measured() -> None:
    nothing = {"seconds": [], "peak_extra_bytes": None}
    cells = {
        "checkpointing/8": {
            "topic": "checkpointing",
            "sides": {"none": record(seconds=1, peak=100), "full": record(seconds=1.25, peak=60)},
        },
        "precision/8": {
            "topic": "precision",
            "sides": {"fp32": record(seconds=1, peak=100), "bf16": record(seconds=0.5, peak=80), "fp16": nothing},
        },
    }
    found = summarise(cells)
    assert [(claim["claim"], claim["holds"]) for claim in found["claims"]] == [
        ("C9", True), ("C8", False), ("C8", None),
    ]  # fmt: skip
    full = found["compared"]["checkpointing/8"]["full"]
    assert full["memory_saved"] == pytest.approx(0.4)
    assert full["memory_saved_of_all"] == pytest.approx(0.2)
    assert found["compared"]["precision/8"]["bf16"]["times_faster"] == 2


def test_models_do_not_depend_on_the_length() -> None:
    one, other = (make_model(case, is_dense=False).state_dict() for case in (CASE, CASE.size()))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
