import json

import numpy as np
import pytest

from sortyard.errors import InputError
from sortyard.runs.environment import describe_environment
from sortyard.runs.folder import MOST_ROUTING, RunFolder
from tests.training.tiny import new_run


def test_create_refuses_a_folder_with_content(tmp_path):
    new_run(tmp_path / "run")
    with pytest.raises(InputError, match="sortyard resume"):
        new_run(tmp_path / "run")


def test_create_refuses_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        new_run(tmp_path / "file" / "run")


def test_open_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="resolved"):
        RunFolder.open(tmp_path)


def test_records_hold_no_nan(tmp_path):
    run = new_run(tmp_path / "run")
    run.append_metric("train", 1, {"loss": float("nan"), "by_layer": [1.0, float("inf")]})
    assert run.read_metrics() == [{"kind": "train", "step": 1, "loss": None, "by_layer": [1.0, None]}]


def test_metrics_of_one_kind(tmp_path):
    run = new_run(tmp_path / "run")
    run.append_metric("train", 1, {})
    run.append_metric("eval", 1, {"accuracy": 0.5})
    assert [record["kind"] for record in run.read_metrics("eval")] == ["eval"]


def test_a_line_cut_short_by_a_kill_is_ignored_then_replaced(tmp_path):
    run = new_run(tmp_path / "run")
    run.append_event("start", step=0)
    with run.events.open("a") as file:
        file.write('{"event": "che')
    assert [record["event"] for record in run.read_events()] == ["start"]
    run.append_event("resume", step=0, note="line separator \u2028 inside")
    assert [record["event"] for record in run.read_events()] == ["start", "resume"]


def test_a_broken_line_is_named(tmp_path):
    run = new_run(tmp_path / "run")
    run.metrics.write_text('{"kind": "train", "step": 1}\nnonsense\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        run.read_metrics()


def test_cut_after_leaves_what_an_uninterrupted_run_had(tmp_path):
    run = new_run(tmp_path / "run")
    for step in (2, 4, 6):
        run.append_metric("train", step, {"loss": 1.0})
        run.append_routing(step, np.full((1, 2), 0.5, dtype=np.float32))
    run.sync()
    again = RunFolder.open(run.path)
    again.cut_after(4)
    again.append_routing(5, np.ones((1, 2), dtype=np.float32))
    again.sync()
    steps, loads = again.read_routing()
    assert [record["step"] for record in again.read_metrics()] == [2, 4]
    assert steps.tolist() == [2, 4, 5]
    assert loads.shape == (3, 1, 2)
    again.cut_after(0)
    assert not again.routing.exists()
    assert again.read_routing()[0].size == 0


def test_environment_is_plain_json(tmp_path):
    values = describe_environment(seed=3, device="cpu", data_fingerprint="abc", command=["sortyard", "a b"])
    run = RunFolder.create(tmp_path / "run", recipe="", resolved="", environment=values)
    assert json.loads(run.environment.read_text()) == json.loads(json.dumps(values))
    assert values["command"] == "sortyard 'a b'"
    assert values["versions"]["torch"]


@pytest.mark.parametrize("program", ["/lib/sortyard/__main__.py", "/bin/sortyard", "sortyard.exe"])
def test_the_program_is_named_without_its_path(program):
    values = describe_environment(seed=3, device="cpu", data_fingerprint="abc", command=[program, "demo"])
    assert values["command"] == "sortyard demo"


def test_routing_of_a_long_run_is_thinned_evenly(tmp_path):
    run = new_run(tmp_path / "run")
    for step in range(1, 5 * MOST_ROUTING):
        run.append_routing(step, np.full((1, 2), step, dtype=np.float32))
    run.sync()
    steps, loads = run.read_routing()
    assert MOST_ROUTING // 2 <= len(steps) <= MOST_ROUTING
    assert (steps[0], steps[-1]) == (1, 5 * MOST_ROUTING - 1)
    assert (loads[:, 0, 0] == steps).all()
    assert np.diff(steps).max() <= 40  # ten times as many records as there are halves to keep
    assert np.diff(steps).min() >= 1
