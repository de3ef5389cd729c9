"""Messages, memory and time of small cases by hand."""

from dataclasses import replace
from typing import Any

import pytest

from sortyard.jobs.layouts.estimate import estimate_layout
from sortyard.jobs.layouts.machines import GPUS, Cluster, make_cluster
from sortyard.jobs.layouts.search import find_layouts, first_of_each
from sortyard.jobs.layouts.work import Work, read_work
from sortyard.jobs.plan import plan_pretraining
from sortyard.parallel.options import ParallelOptions
from sortyard.recipe import load_recipe

D, F, V, LAYERS, LENGTH, ROWS, MICRO = 32, 48, 400, 4, 64, 8, 4
DENSE = 4 * D * D + 2 * F * D + D * F + 2 * D  # a layer: attention, gate and up, down, two norms
ENDS = V * D + D + D + D * D + D + V  # embedding, its norm, final norm, head, its norm, the vocabulary's bias
STATES = LENGTH * D  # numbers of a row's states


def work(*settings: str) -> Work:
    values = {
        "tokenizer.vocab_size": V, "model.hidden_size": D, "model.intermediate_size": F,
        "model.num_hidden_layers": LAYERS, "model.num_attention_heads": 4, "model.num_experts": 1,
        "model.num_expert_groups": 1, "model.num_groups_per_tok": 1, "model.num_experts_per_tok": 1,
        "pretrain.data.sequence_length": LENGTH, "pretrain.loop.micro_batch_size": ROWS,
        "pretrain.loop.accumulation_steps": MICRO, "pretrain.masking.probability": 0.25,
    }  # fmt: skip
    return read_work(load_recipe("small", overrides=[*(f"{k}={v}" for k, v in values.items()), *settings]).recipe)


EXPERTS = (
    "model.num_experts=8", "model.num_experts_per_tok=2", "model.num_expert_groups=4", "model.num_groups_per_tok=2",
    "model.moe_intermediate_size=16",
)  # fmt: skip


def cluster(gpus: int, *, per_node: int = 8) -> Cluster:
    return make_cluster("h100", gpus=gpus, per_node=per_node, mfu=0.5, link_share=1.0)


def sent(what: Work, gpus: int, **layout: Any) -> dict[str, float]:
    layout.setdefault("dp_shard", 1)
    found = estimate_layout(what, ParallelOptions(**layout), cluster(gpus)).sent
    return {kind: value for kind, value in found.items() if value}


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["model.context=shuffled"], lambda layout: layout.num_shares > 1),
        (["pretrain.loop.activation_checkpointing=selective"], lambda layout: "zero_bubble" in layout.schedule),
    ],
    ids=["shuffled", "selective"],
)
def test_no_layout_is_listed_that_training_refuses(overrides: list[str], what: Any) -> None:
    plain = find_layouts(work("pretrain.loop.accumulation_steps=4"), cluster(4)).layouts
    assert any(what(estimate.layout) for estimate in plain)
    found = find_layouts(work("pretrain.loop.accumulation_steps=4", *overrides), cluster(4)).layouts
    assert found
    assert not any(what(estimate.layout) for estimate in found)


def test_one_gpu_sends_nothing() -> None:
    assert sent(work(), 1) == {}


def test_shards_are_gathered_twice_and_scattered_once_a_micro_batch() -> None:
    numbers = LAYERS * DENSE + ENDS
    expected = {"gather": 2 * MICRO * numbers * 4 * 3 / 4, "scatter": MICRO * numbers * 4 * 3 / 4}
    assert sent(work(), 4, dp_shard=4) == pytest.approx(expected)
    half = sent(work("pretrain.loop.precision=bf16"), 4, dp_shard=4)
    assert half == pytest.approx(expected)  # autocast makes 16 bits of what was gathered


def test_replicas_are_reduced_once_a_step() -> None:
    numbers = LAYERS * DENSE + ENDS
    assert sent(work(), 4, dp_replicate=4) == pytest.approx({"replicas": 2 * numbers * 4 * 3 / 4})


@pytest.mark.parametrize(("recomputes", "passes"), [("false", 2), ("true", 3)])
def test_tensor_parallelism_sums_twice_a_layer_and_pass(recomputes: str, passes: int) -> None:
    sums = passes * 2 * LAYERS + 1 + 0.25  # the embedding forward, the targets backward
    found = sent(work(f"pretrain.loop.activation_checkpointing={recomputes}"), 2, tp=2)
    assert found == pytest.approx({"tensor": MICRO * sums * ROWS * STATES * 4 * 2 * 1 / 2})


def test_copies_go_to_their_experts_and_back_in_each_pass() -> None:
    found = sent(work(*EXPERTS), 4, ep=4)
    copies = (ROWS // 4) * STATES * 2
    assert found["experts"] == pytest.approx(MICRO * LAYERS * 2 * 2 * copies * 4 * 3 / 4)


@pytest.mark.parametrize(
    ("schedule", "pp", "sends"),
    [("1f1b", 4, 2), ("gpipe", 4, 2), ("interleaved_1f1b", 2, 3), ("zbv_zero_bubble", 2, 2)],
)
def test_the_busiest_stages_send_states_and_gradients(schedule: str, pp: int, sends: int) -> None:
    found = sent(work(), pp, pp=pp, schedule=schedule)
    assert found["pipeline"] == pytest.approx(MICRO * sends * ROWS * STATES * 4)
    tied = 0 if schedule == "zbv_zero_bubble" else 2 * V * D * 4 / 2  # the V's ends meet in one process
    assert found.get("tied", 0) == pytest.approx(tied)


def test_links_inside_and_between_nodes() -> None:
    gpu, nodes = GPUS["h100"], cluster(16)
    assert nodes.speed(size=8, stride=1, way="ring") == gpu.node_speed
    assert nodes.speed(size=16, stride=1, way="ring") == 8 * gpu.network_speed
    assert nodes.speed(size=2, stride=8, way="ring") == gpu.network_speed
    assert nodes.speed(size=16, stride=1, way="each") == gpu.network_speed
    assert replace(nodes, link_share=0.5).speed(size=2, stride=1, way="each") == gpu.node_speed / 2


def test_memory_of_one_process_by_hand() -> None:
    found = estimate_layout(work(), ParallelOptions(dp_shard=1), cluster(1)).memory
    numbers = LAYERS * DENSE + ENDS
    assert (found.parameters, found.gradients) == (4 * numbers, 4 * numbers)
    assert found.buffers == 0
    tokens = ROWS * LENGTH
    assert found.logits == tokens * 0.25 * (4 * 4 * D + 12 * V)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recomputes", ["false", "true"])
def test_one_gpu_needs_what_a_dry_run_says(precision: str, recomputes: str) -> None:
    settings = (f"pretrain.loop.precision={precision}", f"pretrain.loop.activation_checkpointing={recomputes}")
    recipe = load_recipe("demo", overrides=settings).recipe
    what = read_work(recipe)
    found = estimate_layout(what, ParallelOptions(dp_shard=1), cluster(1)).memory
    step_counts = 4 * len({weight.key for weight in what.weights})
    assert found.total == pytest.approx(plan_pretraining(recipe).memory_bytes + step_counts, abs=2)


def test_a_pipeline_holds_the_micro_batches_in_flight() -> None:
    what = work("pretrain.loop.accumulation_steps=8")
    held = {
        schedule: estimate_layout(what, ParallelOptions(dp_shard=1, pp=4, schedule=schedule), cluster(4)).memory
        for schedule in ("gpipe", "1f1b")
    }
    lines = ROWS * LENGTH * 4 * D  # what the first stage adds for its embedding
    layer = held["gpipe"].activations / 8
    assert held["1f1b"].activations == pytest.approx(4 * layer, abs=4 * lines)
    assert held["gpipe"].logits > held["1f1b"].logits


def test_time_is_arithmetic_over_the_peak_when_nothing_is_sent() -> None:
    what = work()
    found = estimate_layout(what, ParallelOptions(dp_shard=1), cluster(1))
    flops = what.tokens * 3 * (LAYERS * what.layer_flops + 0.25 * what.head_flops)
    assert found.compute_seconds == pytest.approx(flops / (66.9e12 * 0.5))
    assert found.step_seconds == pytest.approx(found.compute_seconds + found.optimizer_seconds)
    assert found.tokens_per_second == pytest.approx(what.tokens / found.step_seconds)


def test_search_counts_what_cannot_be() -> None:
    found = find_layouts(work(*EXPERTS, "pretrain.loop.accumulation_steps=2"), cluster(16))
    reasons = "\n".join(found.refused)
    assert "tp_size is 8, which does not divide num_attention_heads 4" in reasons
    assert "8 pipeline stages for num_hidden_layers 4" in reasons
    assert "16 data-parallel processes for micro_batch_size 8" in reasons
    assert "ep 16 does not divide num_experts 8" in reasons
    assert "accumulation_steps 2 is too few for 1f1b with pp 4 (needs 4)" in reasons
    steps = [estimate.step_seconds for estimate in found.layouts if estimate.fits]
    assert steps == sorted(steps)
    kinds = [(e.layout.pp, e.layout.ep, e.layout.tp) for e in first_of_each(found.layouts)]
    assert len(kinds) == len(set(kinds))


def test_sequence_parallelism_is_tried_where_memory_is_short() -> None:
    tight = replace(cluster(2), gpu=replace(GPUS["h100"], memory_bytes=1e6))
    found = find_layouts(work(), tight)
    assert {e.layout.sequence_parallel for e in found.layouts if e.layout.tp > 1} == {True}
    assert not any(estimate.fits for estimate in found.layouts)
