"""Alternated timing, its ratios, and the peak memory of a call in a fresh process."""

import pytest
import torch

from sortyard.studies.bench import runner
from sortyard.studies.bench.memory import Probe, peak_extra_memory
from sortyard.studies.bench.runner import Ratio, alternate, ratio_of

MEGABYTES = 40


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    runs = alternate({name: lambda name=name: order.append(name) for name in "ab"}, repetitions=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in runs.items()} == {"a": 3, "b": 3}


def test_a_slow_side_is_not_repeated_and_needs_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])

    def takes(seconds: float) -> None:
        clock[0] += seconds

    calls = {"slow": lambda: takes(60.0), "fast": lambda: takes(1.0)}
    runs = alternate(calls, repetitions=4, patience_seconds=2.5, no_warmup=["slow"])
    assert runs == {"slow": [60.0], "fast": [1.0] * 3}
    assert clock[0] == 60 + 4


def test_no_round_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 1.0

    calls = {"a": call, "b": call}
    for seconds, rounds in ((0.0, 1), (7.9, 2), (8.0, 3), (100.0, 5)):  # a warm-up of two seconds comes first
        runs = alternate(calls, repetitions=5, seconds=seconds)
        assert {name: len(found) for name, found in runs.items()} == {"a": rounds, "b": rounds}


def test_a_failing_side_is_left_out_where_someone_takes_the_error() -> None:
    def fail() -> None:
        raise RuntimeError("no kernel")

    told: list[str] = []
    calls = {"good": lambda: None, "bad": fail}
    runs = alternate(calls, repetitions=2, on_failure=lambda name, error: told.append(f"{name}: {error}"))
    assert list(runs) == ["good"]
    assert told == ["bad: no kernel"]
    with pytest.raises(RuntimeError, match="no kernel"):
        alternate(calls, repetitions=1)


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="repetitions is 0"):
        alternate({}, repetitions=0)
    with pytest.raises(ValueError, match="warmup is -1"):
        alternate({}, repetitions=1, warmup=-1)


def test_ratios_are_of_neighbours() -> None:
    assert ratio_of([4.0, 6.0, 9.0], [2.0, 2.0, 3.0]) == Ratio(3.0, 2.0, 3.0)
    assert ratio_of([60.0], [2.0, 3.0, 4.0]) == Ratio(20.0, 15.0, 30.0)


def allocate(*, megabytes: int) -> Probe:
    """What the child of the memory test runs."""

    def call() -> None:
        torch.ones(megabytes * 10**6, dtype=torch.uint8)

    return Probe(call=call, warm=lambda: torch.ones(1))


def test_peak_memory_is_that_of_the_call() -> None:
    peak = peak_extra_memory(f"{__name__}:allocate", {"megabytes": MEGABYTES}, device="cpu", threads=1)
    assert peak.problem == ""
    assert peak.num_bytes == pytest.approx(MEGABYTES * 10**6, rel=0.1)


def test_a_failing_child_says_why() -> None:
    peak = peak_extra_memory(f"{__name__}:allocate", {"gigabytes": 1}, device="cpu", threads=1)
    assert peak.num_bytes is None
    assert "gigabytes" in peak.problem
