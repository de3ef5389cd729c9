"""Layouts of several processes, beside the same run in one: in float64, so that nothing but rounding may differ."""

from math import prod
from pathlib import Path
from typing import Any

import pytest

from sortyard.parallel.schedule import can_split_backward
from tests.parallel.equality import Case, make_model, run_world
from tests.parallel.silent_bugs import BUGS

pytestmark = pytest.mark.dist

LOSS, GRADIENT = 1e-12, 1e-10

OF_TWO = [
    Case({"dp_replicate": 2}, accumulation=2, steps=3),
    Case({"dp_shard": 2}, accumulation=2, steps=20),
    Case({"tp": 2}, "mixed", accumulation=2, steps=3),
    Case({"tp": 2, "sequence_parallel": True}, "mixed", accumulation=2, steps=3),
    Case({"ep": 2}, "mixed", accumulation=2, steps=3),
    Case({"pp": 2}, "mixed", accumulation=8, steps=3, checkpointing="full"),
    Case({"pp": 2, "schedule": "gpipe"}, accumulation=1, steps=20),
    Case({"pp": 2, "schedule": "interleaved_1f1b"}, accumulation=2, steps=3),
    Case({"pp": 2, "schedule": "interleaved_zero_bubble"}, "causal", accumulation=2, steps=3),
    Case({"pp": 2, "schedule": "zbv_zero_bubble"}, accumulation=2, steps=3, checkpointing="full"),
    Case({"pp": 2, "schedule": "1f1b"}, accumulation=2, steps=3, checkpointing="selective"),
]
OF_FOUR = [
    Case({"dp_shard": 2, "tp": 2}, "mixed", accumulation=2, steps=3, checkpointing="full"),
    Case({"dp_replicate": 2, "dp_shard": 2}, accumulation=1, steps=20),
    Case({"dp_shard": 2, "pp": 2}, "mixed", accumulation=2, steps=3),
    Case({"tp": 2, "pp": 2, "sequence_parallel": True}, "mixed", accumulation=8, steps=20),
    Case({"ep": 2, "tp": 2}, "mixed", accumulation=2, steps=3),
    Case({"ep": 2, "dp_shard": 2}, "mixed", accumulation=2, steps=3),
    Case({"ep": 2, "pp": 2, "schedule": "interleaved_1f1b"}, accumulation=2, steps=3),
    Case({"pp": 4, "schedule": "zbv_zero_bubble"}, "deep", accumulation=4, steps=3),
]
OF_THREE = [Case({"dp_shard": 3}, accumulation=2, steps=3), Case({"pp": 3}, "mixed", accumulation=4, steps=3)]
if not can_split_backward():  # an older torch, for which such a layout is refused
    OF_TWO, OF_FOUR = (
        [case for case in cases if "zero_bubble" not in case.layout.get("schedule", "")] for cases in (OF_TWO, OF_FOUR)
    )


ROUGH = [  # in 16 bits the order of sums shows, and with it an expert or a key may change here and there
    Case({"dp_shard": 2}, accumulation=2, steps=8, dtype="float32", precision="fp16"),
    Case({"tp": 2}, accumulation=2, steps=8, dtype="float32", precision="bf16"),
    Case({"pp": 2}, "mixed", accumulation=2, steps=8, dtype="float32", precision="bf16"),
    Case({"ep": 2}, accumulation=2, steps=8, dtype="float32", precision="bf16"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("equality")
    reports = {}
    for cases, size in ((OF_TWO, 2), (OF_FOUR, 4), (OF_THREE, 3)):
        assert all(prod(v for v in case.layout.values() if type(v) is int) == size for case in cases)
        reports |= {
            case.name: report for case, report in zip(cases, run_world(cases, size=size, folder=folder), strict=True)
        }
    return reports


ALL = [case.name for case in (*OF_TWO, *OF_FOUR, *OF_THREE)]


@pytest.mark.parametrize("name", ALL)
def test_losses_norms_and_loads_are_those_of_one_process(found, name):
    report = found[name]
    assert report["losses"] < LOSS
    assert report["balances"] < LOSS
    assert report["norms"] < LOSS
    assert report["loads"] == report["num_skipped"] == 0


@pytest.mark.parametrize("name", ALL)
def test_gradients_and_weights_are_those_of_one_process(found, name):
    assert found[name]["first"] < GRADIENT
    assert found[name]["last"] < GRADIENT
    assert found[name]["values"] < GRADIENT


@pytest.mark.parametrize("case", [*OF_TWO, *OF_FOUR, *OF_THREE], ids=lambda case: case.name)
def test_every_element_has_one_process_that_answers_for_it(found, case):
    whole = {name: parameter.numel() for name, parameter in make_model(case).named_parameters()}
    assert found[case.name]["covered"] == whole


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    reports = run_world(ROUGH, size=2, folder=tmp_path_factory.mktemp("rough"))
    return {case.name: report for case, report in zip(ROUGH, reports, strict=True)}


@pytest.mark.parametrize("case", ROUGH, ids=lambda case: f"{case.name}-{case.precision}")
def test_sixteen_bits_follow_one_process_and_overflow_in_the_same_steps(rough, case):
    report = rough[case.name]
    assert report["losses"] < 0.1  # of 4.5
    assert report["skipped"] == 0
    assert (report["num_skipped"] > 0) == (case.precision == "fp16")  # the loss scale falls on all processes


SPOILT = [
    Case(layout, accumulation=2, steps=4, spoilt=what)
    for layout in ({"dp_shard": 2}, {"tp": 2}, {"pp": 2})
    for what in ("loss", "gradients")
]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    reports = run_world(SPOILT, size=2, folder=tmp_path_factory.mktemp("spoilt"))
    return {case.name: report for case, report in zip(SPOILT, reports, strict=True)}


@pytest.mark.parametrize("case", SPOILT, ids=lambda case: case.name)
def test_what_is_no_number_in_one_share_of_the_rows_is_left_out_by_all(spoilt, case):
    """The step counts for nothing, the micro-batch is named where its loss tells, and all go on as one process does."""
    report = spoilt[case.name]
    assert report["num_skipped"] == (4 if case.spoilt == "loss" else 2)  # 3 and the micro-batch's number, or -1
    assert report["skipped"] == 0  # of differences
    assert max(report[kind] for kind in ("losses", "balances", "norms")) < LOSS
    assert max(report[kind] for kind in ("first", "last", "values")) < GRADIENT


MUTANTS = [
    Case(layout, "biased" if "bias" in name else "tree", accumulation=2, steps=3, break_it=name)
    for name, (_, layout) in BUGS.items()
]


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    reports = run_world(MUTANTS, size=2, folder=tmp_path_factory.mktemp("mutants"))
    return {case.break_it: report for case, report in zip(MUTANTS, reports, strict=True)}


@pytest.mark.parametrize("bug", BUGS)
def test_a_silent_bug_put_back_is_seen(harmed, bug):
    report = harmed[bug]
    passes = report["losses"] < LOSS and report["norms"] < LOSS and report["last"] < GRADIENT
    assert not passes, report


COMPILED = [
    Case({"dp_shard": 2}, accumulation=2, steps=3, checkpointing="full", compiled=True),
    Case({"tp": 2, "sequence_parallel": True}, "mixed", accumulation=2, steps=3, compiled=True),
    Case({"ep": 2}, accumulation=2, steps=3, compiled=True),
    Case({"pp": 2}, "mixed", accumulation=2, steps=3, compiled=True),
]


@pytest.mark.slow
def test_compiled_layers_train_as_one_eager_process_does(tmp_path: Path) -> None:
    for case, report in zip(COMPILED, run_world(COMPILED, size=2, folder=tmp_path), strict=True):
        assert report["graphs"] > 0, case.name
        assert report["losses"] < LOSS, case.name
        assert max(report[kind] for kind in ("first", "last", "values")) < GRADIENT, case.name
