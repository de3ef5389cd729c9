"""Layouts of up to 64 processes, tried in this one."""

from typing import Any

import pytest

from sortyard.errors import InputError
from sortyard.jobs.dry_run import LayoutReport, try_layout
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.pretending import one_of_many
from sortyard.parallel.schedule import can_split_backward
from sortyard.recipe import load_recipe

SMALL = [
    "tokenizer.vocab_size=512", "model.hidden_size=64", "model.num_attention_heads=8", "model.intermediate_size=64",
    "model.moe_intermediate_size=32", "model.max_position_embeddings=128", "pretrain.data.sequence_length=64",
    "model.dense_up_to=16", "model.bucket_size=8",
]  # fmt: skip


def tried(num_processes: int, overrides: tuple[str, ...] = (), **sizes: Any) -> LayoutReport:
    recipe = load_recipe("small", overrides=[*SMALL, *overrides]).recipe
    return try_layout(recipe, ParallelOptions(**sizes), num_processes)


def test_one_process_holds_everything() -> None:
    report = tried(1)
    (part,) = report.parts
    assert not report.problems
    assert part.parameters == report.parameters
    assert part.layers == (0, 1, 2, 3)
    assert part.total_bytes == 16 * report.parameters
    assert report.passes.startswith("1 row of 64 tokens, forward and backward")


def test_tensor_8_pipeline_4_and_2_copies_need_no_64_processes() -> None:
    report = tried(64, pp=4, tp=8)
    assert not report.problems
    assert report.layout["dp_shard"] == 2
    assert report.rows_per_process == 8
    assert [part.rank for part in report.parts] == [0, 16, 32, 48]
    assert [part.layers for part in report.parts] == [(0,), (1,), (2,), (3,)]
    assert [part.has_embeddings for part in report.parts] == [True, False, False, False]
    assert all(part.parameters < report.parameters / 8 for part in report.parts)
    assert report.passes.startswith("1 row of 64 tokens")
    assert "16 like 48" in report.text()
    assert report.record()["parts"][3]["has_head"] is True


@pytest.mark.parametrize("sizes", [{"dp_shard": 2}, {"dp_replicate": 2, "dp_shard": 2}], ids=["cut", "cut and copied"])
def test_cut_copies_hold_a_share(sizes: dict[str, int]) -> None:
    report = tried(2 * sizes.get("dp_replicate", 1), **sizes)
    assert not report.problems
    assert report.parts[0].parameters == pytest.approx(report.parameters / 2, rel=0.01)


@pytest.mark.skipif(not can_split_backward(), reason="this torch has no zero-bubble schedules")
def test_interleaved_stages_and_tied_weights_are_where_they_belong() -> None:
    report = tried(2, pp=2, schedule="zbv_zero_bubble")
    assert not report.problems
    assert [part.stages for part in report.parts] == [(0, 3), (1, 2)]
    assert [part.layers for part in report.parts] == [(0, 3), (1, 2)]
    assert report.ideal_bubble_share is not None
    assert 0 < report.ideal_bubble_share < 0.2
    # The first and the last stage have a copy each of the embeddings that both use.
    assert sum(part.parameters for part in report.parts) == report.parameters + 512 * 64


def test_tokens_go_to_experts_that_are_not_there() -> None:
    report = tried(4, ep=2, dp_shard=2)
    assert report.problems == ()
    assert report.passes.startswith("1 row of 64 tokens, forward and backward")
    assert 0 < report.parts[0].parameters < 0.3 * report.parameters


@pytest.mark.parametrize(
    ("num_processes", "sizes", "overrides", "words"),
    [
        (6, {"tp": 4, "dp_shard": 1}, (), "does not come to 6 processes"),
        (3, {"tp": 3}, (), "does not divide num_attention_heads 8"),
        (8, {"pp": 8}, (), "lower pp"),
        (32, {"dp_shard": 32}, (), "cannot share a micro-batch of 16 row"),
        (8, {"tp": 8, "sequence_parallel": True}, ("pretrain.data.sequence_length=60",), "does not come out even"),
    ],
)
def test_what_does_not_fit_is_told(
    num_processes: int, sizes: dict[str, Any], overrides: tuple[str, ...], words: str
) -> None:
    report = tried(num_processes, overrides, **sizes)
    assert words in report.problems[0]
    assert "problem" in report.text()


def test_checkpointed_and_in_16_bits() -> None:
    loop = ("pretrain.loop.activation_checkpointing=selective", "pretrain.loop.precision=bf16")
    assert tried(4, loop, tp=2, pp=2).passes.startswith("1 row")


def test_processes_that_have_met_others_cannot_pretend() -> None:
    with one_of_many(3, num_processes=8), pytest.raises(InputError, match="one process alone"):
        tried(2, tp=2)


@pytest.mark.slow
def test_the_seeds_layout_of_the_shipped_recipe() -> None:
    recipe = load_recipe("seed", overrides=["model.hidden_size=1024", "model.num_attention_heads=16"]).recipe
    report = try_layout(recipe, ParallelOptions(tp=8, pp=4), 64)
    assert not report.problems
    assert max(part.total_bytes for part in report.parts) < 2**29
