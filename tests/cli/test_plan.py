"""`sortyard plan` from the command line."""

from collections.abc import Callable

import pytest

PARTS = {"parameters", "gradients", "optimizer", "activations", "logits", "buffers", "total"}


def test_the_seed_on_64_gpus_is_one_object_best_first(sortyard: Callable) -> None:
    ended = sortyard("plan", "seed", "--gpus", "64", "--gpu", "h100", "--top", "5", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert len(ended.out.splitlines()) == 1
    assert (found["is_estimate"], found["gpus"], found["tokens_per_step"]) == (True, 64, 4096 * 8 * 1024)
    assert [layout["rank"] for layout in found["layouts"]] == [1, 2, 3, 4, 5]
    steps = [layout["step_seconds"] for layout in found["layouts"]]
    assert steps == sorted(steps)
    for layout in found["layouts"]:
        sizes = layout["layout"]
        assert sizes["pp"] * sizes["dp_replicate"] * sizes["dp_shard"] * sizes["ep"] * sizes["tp"] == 64
        assert set(layout["memory_bytes"]) == PARTS
        assert layout["fits"]
    assert found["assumptions"]
    assert sum(found["refused"].values()) > 0


def test_the_table_says_that_nothing_was_measured(sortyard: Callable) -> None:
    ended = sortyard("plan", "small", "--gpus", "4", "--gpu", "l40s", "--all", "pretrain.loop.accumulation_steps=8")
    assert ended.status == 0, ended.err
    assert "small on 4 l40s: 8 micro-batches of 16 x 512 tokens" in ended.out
    assert "estimates, nothing was measured" in ended.out
    assert "zero bubble V" in ended.out
    assert "layouts are possible" in ended.out


def test_nothing_fits_is_said(sortyard: Callable) -> None:
    ended = sortyard("plan", "seed", "--gpus", "1", "pretrain.loop.activation_checkpointing=false")
    assert ended.status == 0, ended.err
    assert "none fits; these need the least memory" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "which recipe?"),
        (["plan", "seed", "--gpus", "8", "--gpu", "h10"], "choose one of h100, h200, a100-80, a100-40, l40s"),
        (["plan", "seed", "--gpus", "0"], "--gpus is 0"),
        (["plan", "seed", "--gpus", "-8"], "--gpus is -8"),
        (["plan", "seed", "--gpus", "12"], "take 8 or 16 GPUs"),
        (["plan", "seed", "--gpus-per-node", "0"], "--gpus-per-node is 0"),
        (["plan", "seed", "--mfu", "1.5"], "--mfu is 1.5"),
        (["plan", "seed", "--top", "0"], "--top is 0"),
        (["plan", "adapt", "--gpus", "8"], "has no section pretrain"),
        (["plan", "seed", "--gpus", "8", "model.num_expert=4"], "num_experts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_input_ends_with_2_and_says_why(words: list[str], message: str, sortyard: Callable) -> None:
    ended = sortyard(*words, "--json")
    assert (ended.status, ended.json["exit_status"]) == (2, 2)
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_one_layout_is_tried_without_its_processes(sortyard: Callable) -> None:
    found = sortyard("plan", "small", "--gpus", "8", "--try", "pp=2, tp=2", "--json").json
    assert found["layout"]["dp_shard"] == 2
    assert [part["layers"] for part in found["parts"]] == [[0, 1], [2, 3]]


def test_a_layout_is_spelt_as_a_recipe_spells_it(sortyard: Callable) -> None:
    ended = sortyard("plan", "small", "--try", "ttp=2")
    assert ended.status != 0
    assert "did you mean parallel.tp" in ended.err
