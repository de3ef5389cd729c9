"""On a GPU: layouts of several processes beside one in float64, and runs that are stopped, reshaped and resumed.

There is one GPU at most, so gloo stands in for NCCL between processes; NCCL itself is met by a single one.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from sortyard.parallel.schedule import can_split_backward
from tests.faults.elastic import check_losses, events, steps_done, write_inputs
from tests.faults.elastic_target import launch, statuses
from tests.faults.killing import _wait_until
from tests.parallel.equality import Case, run_world
from tests.parallel.test_equality import GRADIENT, LOSS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.dist,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

STEPS = 16  # of the recipe
QUIET = ("--json", "-q")

OF_FOUR = [
    Case({"dp_replicate": 2, "dp_shard": 2}, accumulation=2, steps=3, device="cuda"),
    Case({"dp_shard": 2, "tp": 2}, "mixed", accumulation=2, steps=3, checkpointing="full", device="cuda"),
    Case({"tp": 4, "sequence_parallel": True}, accumulation=2, steps=3, checkpointing="selective", device="cuda"),
    Case({"ep": 2, "dp_shard": 2}, "mixed", accumulation=2, steps=3, device="cuda"),
    Case({"ep": 2, "tp": 2}, "biased", accumulation=2, steps=3, device="cuda"),
    Case({"pp": 2, "dp_shard": 2}, "mixed", accumulation=4, steps=3, device="cuda"),
    Case({"pp": 2, "tp": 2, "schedule": "interleaved_1f1b"}, accumulation=2, steps=3, device="cuda"),
    Case({"pp": 2, "ep": 2, "schedule": "gpipe"}, accumulation=2, steps=3, device="cuda"),
]
if can_split_backward():
    OF_FOUR += [
        Case({"pp": 4, "schedule": "zbv_zero_bubble"}, "deep", accumulation=4, steps=3, device="cuda"),
        Case({"pp": 4, "schedule": "interleaved_zero_bubble"}, "deep", accumulation=4, steps=3, device="cuda"),
    ]
COMPILED = Case({"dp_shard": 2, "tp": 2}, accumulation=2, steps=3, compiled=True, device="cuda")
ROUGH = [
    Case({"dp_shard": 2, "tp": 2}, accumulation=2, steps=8, dtype="float32", precision="bf16", device="cuda"),
    Case({"dp_shard": 2, "tp": 2}, accumulation=2, steps=8, dtype="float32", precision="fp16", device="cuda"),
    Case({"pp": 2, "ep": 2}, accumulation=2, steps=8, dtype="float32", precision="bf16", device="cuda"),
]


def check(report: dict[str, Any]) -> None:
    assert max(report[name] for name in ("losses", "balances", "norms")) < LOSS, report
    assert max(report[name] for name in ("first", "last", "values")) < GRADIENT, report
    assert report["loads"] == report["num_skipped"] == 0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    reports = run_world(OF_FOUR, size=4, folder=tmp_path_factory.mktemp("gpu"))
    return {case.name: report for case, report in zip(OF_FOUR, reports, strict=True)}


@pytest.mark.parametrize("name", [case.name for case in OF_FOUR])
def test_four_processes_train_as_one_does(found: dict[str, dict[str, Any]], name: str) -> None:
    check(found[name])


def test_nccl_of_one_process_trains_as_none_does(tmp_path: Path) -> None:
    (report,) = run_world([Case({}, accumulation=2, steps=3, device="cuda")], size=1, folder=tmp_path)
    check(report)


def test_compiled_layers_train_as_one_eager_process_does(tmp_path: Path) -> None:
    (report,) = run_world([COMPILED], size=4, folder=tmp_path)
    assert report["graphs"] > 0
    check(report)


def test_sixteen_bits_follow_one_process(tmp_path: Path) -> None:
    for case, report in zip(ROUGH, run_world(ROUGH, size=4, folder=tmp_path), strict=True):
        assert report["losses"] < 0.1, case.name  # of 4.5
        assert report["skipped"] == 0
        assert (report["num_skipped"] > 0) == (case.precision == "fp16")


def test_runs_are_stopped_reshaped_and_resumed(tmp_path: Path) -> None:
    """Two processes, one, two again; beside one that nothing stopped, and one that is resumed as it was."""
    write_inputs(tmp_path)
    words = ["pretrain", "tiny.yaml", "pretrain.loop.device=cuda"]
    share = {"SHARE_GPU": "1"}
    assert statuses(launch(tmp_path, [*words, "--out", "alone", *QUIET], size=1)) == [0], log(tmp_path)

    processes = launch(tmp_path, [*words, "--out", "stopped", *QUIET], size=1)
    _wait_until(lambda: steps_done(tmp_path / "stopped") >= 5, processes)
    processes[0].terminate()
    assert statuses(processes) == [143], log(tmp_path)
    assert statuses(launch(tmp_path, ["resume", "stopped", *QUIET], size=1)) == [0], log(tmp_path)
    check_losses(tmp_path / "stopped", tmp_path / "alone")

    run = tmp_path / "changing"
    words = [*words, "parallel.dp_shard=2", "--out", "changing", *QUIET]
    for size, stop_at in ((2, 4), (1, 9), (2, STEPS)):
        processes = launch(tmp_path, words, size=size, **(share if size > 1 else {}))
        if stop_at < STEPS:
            _wait_until(lambda at=stop_at: steps_done(run) >= at, processes)
            processes[-1].terminate()
        assert statuses(processes) == [143 if stop_at < STEPS else 0] * size, log(tmp_path)
        words = ["resume", "changing", f"parallel.dp_shard={3 - size}", *QUIET]
    assert len(events(run, "resume")) == 2
    check_losses(run, tmp_path / "alone")


def log(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("log-*.txt")))
