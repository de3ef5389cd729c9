"""What processes measure of their exchanges and of a pipeline's waiting, beside what it must come to."""

import pytest
import torch

from sortyard.parallel.occupancy import Occupancy
from tests.parallel.equality import LENGTH, ROWS, SMALL, Case, make_model, run_world

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
FLOAT, MICRO = 8, 2
WIDTH, LAYERS, EXPERTS = SMALL["hidden_size"], SMALL["num_hidden_layers"], SMALL["num_experts"]
STATES = ROWS * LENGTH * WIDTH * FLOAT
CASES = {
    name: Case({name: 2}, accumulation=MICRO if name != "pp" else 8, steps=1) for name in ("pp", "tp", "dp_shard", "ep")
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    reports = run_world(list(CASES.values()), size=2, folder=tmp_path_factory.mktemp("measured"))
    return dict(zip(CASES, reports, strict=True))


def others(report, *kinds):
    return sum(report[f"{kind}_bytes"] for kind in KINDS if kind not in kinds)


@pytest.mark.dist
def test_a_pipeline_sends_states_gradients_and_tied_weights(found):
    tied = SMALL["vocab_size"] * WIDTH * FLOAT
    expected = 2 * (8 * (STATES + FLOAT) + tied)
    assert 0 <= found["pp"]["send_bytes"] - expected <= 64  # torch's pipelines shake hands first
    assert others(found["pp"], "send") == 0


@pytest.mark.dist
def test_the_bubble_is_a_share_and_only_a_pipelines(found):
    assert 0 < found["pp"]["bubble_share"] < 1
    assert {found[name]["bubble_share"] for name in ("tp", "dp_shard", "ep")} == {-1}


@pytest.mark.dist
def test_tensor_parallelism_adds_up_in_attention_and_experts_both_ways(found):
    least = 2 * MICRO * LAYERS * 4 * STATES
    assert least < found["tp"]["all_reduce_bytes"] < 1.5 * least
    assert others(found["tp"], "all_reduce") == 0


@pytest.mark.dist
def test_cut_copies_gather_weights_and_scatter_gradients_of_every_micro_batch(found):
    weights = FLOAT * sum(parameter.numel() for parameter in make_model(CASES["dp_shard"]).parameters())
    assert found["dp_shard"]["reduce_scatter_bytes"] == pytest.approx(2 * MICRO * weights, rel=0.02)
    assert found["dp_shard"]["all_gather_bytes"] > 2 * MICRO * weights
    assert others(found["dp_shard"], "reduce_scatter", "all_gather", "all_reduce") == 0


@pytest.mark.dist
def test_copies_of_tokens_go_to_their_experts_and_back_both_ways(found):
    counts = 2 * MICRO * LAYERS * EXPERTS * 8
    assert found["ep"]["all_to_all_bytes"] == 4 * found["ep"]["copies"] * WIDTH * FLOAT + counts


def test_occupancy_tells_each_span_once(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 5.0, 10.0])
    monkeypatch.setattr("sortyard.parallel.occupancy.time.perf_counter", lambda: next(times))
    occupancy = Occupancy(torch.device("cpu"))
    with occupancy.timing("schedule"):
        for _ in range(2):
            with occupancy.timing("pass"):
                pass
    assert occupancy.take() == (3.0, 10.0)
    assert occupancy.take() == (0.0, 0.0)
