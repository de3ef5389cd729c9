"""Counts against real models, and the estimates' limits."""

from typing import Any

import pytest
import torch

from sortyard.evaluation.cost import (
    forward_flops_per_token,
    head_flops_per_target,
    meta_model,
    parameter_counts,
    training_memory,
)
from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import HEADS, build_model
from tests.evaluation.conftest import tiny_options
from tests.evaluation.tiny import make_bert


def shapes(*, head: str = "masked_lm", vocab_size: int = 40, **settings: Any) -> Any:
    return meta_model(SortyardConfig.from_options(tiny_options(**settings), vocab_size=vocab_size), head=head)


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"causal_lm"}))
def test_counts_equal_the_real_model(head: str) -> None:
    real = build_model(tiny_options(), head=head, vocab_size=40, tokenizer_ids={"pad_token_id": 0}, seed=0)
    counts, from_meta = parameter_counts(real), parameter_counts(shapes(head=head))
    assert counts == from_meta
    assert counts.total == real.num_parameters()
    assert counts.embedding == 40 * 32


def test_active_leaves_out_the_experts_not_chosen() -> None:
    counts = parameter_counts(shapes())
    one_expert = 2 * 24 * 32 + 32 * 24  # gate and up, then down
    assert counts.total - counts.active == 2 * (8 - 2) * one_expert
    dense = parameter_counts(shapes(num_experts=1))
    assert dense.total == dense.active


def test_dense_models_of_others_are_counted() -> None:
    bert = make_bert()
    assert parameter_counts(bert).total == parameter_counts(bert).active == bert.num_parameters()


def test_flops_of_a_dense_layer_by_hand() -> None:
    model = shapes(attention="dense", num_experts=1, num_hidden_layers=1, gated_ffn=False)
    linear = 4 * 32 * 32 + 2 * 32 * 48
    assert forward_flops_per_token(model, length=10) == 2 * linear + 4 * 10 * 32
    assert head_flops_per_target(model) == 2 * (32 * 32 + 32 * 40)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"context": "none"}, 8 * 32),
        ({"context": "mean"}, 8 * 64),
        ({"context": "mean", "group_gate": "context"}, 8 * 64 + 4 * 32),
        ({"context": "mean", "router": "frozen_random"}, 8 * 64),
        ({"context": "mean", "router": "token_hash"}, 0),
    ],
    ids=["token", "context", "groups", "frozen", "hash"],
)
def test_flops_of_an_expert_layer_by_hand(changes: dict[str, Any], weights: int) -> None:
    groups = {"num_expert_groups": 4, "num_groups_per_tok": 2}
    model = shapes(attention="dense", num_hidden_layers=1, gated_ffn=False, **groups, **changes)
    linear = 4 * 32 * 32 + 2 * (32 * 24 + 24 * 32)  # attention, and two experts
    assert forward_flops_per_token(model, length=10) == 2 * (linear + weights) + 4 * 10 * 32


def test_bucket_attention_is_dense_when_short_and_cheaper_when_long() -> None:
    model = shapes()
    assert forward_flops_per_token(model, length=16) == forward_flops_per_token(model, length=16, attention="dense")
    long, longer = (forward_flops_per_token(model, length=n) for n in (4096, 8192))
    assert long < 0.2 * forward_flops_per_token(model, length=4096, attention="dense")
    assert longer < 1.2 * long


def test_memory_parts() -> None:
    model = shapes()
    size = parameter_counts(model).total
    full = training_memory(model, micro_batch_size=4, length=64)
    assert (full.weights, full.gradients, full.optimizer) == (4 * size, 4 * size, 8 * size)
    assert full.total == 16 * size + full.activations
    twice = training_memory(model, micro_batch_size=8, length=64)
    assert twice.activations == pytest.approx(2 * full.activations)
    half = training_memory(model, micro_batch_size=4, length=64, precision="bf16")
    assert half.weights == 6 * size
    assert half.activations < full.activations
    logits = training_memory(model, micro_batch_size=4, length=64, target_share=0.5).activations - full.activations
    assert logits == pytest.approx(4 * 64 * 0.5 * (12 * 40 + 4 * 4 * 32), abs=1)


def test_checkpointing_saves_activations_of_deep_models() -> None:
    deep = shapes(num_hidden_layers=12)
    none, full, some, selective = (
        training_memory(
            deep, micro_batch_size=4, length=64, activation_checkpointing=mode, activation_checkpointing_every=every
        ).activations
        for mode, every in (("none", 1), ("full", 1), ("full", 2), ("selective", 1))
    )
    assert full < 0.5 * none
    assert full < selective < none
    assert full < some < none


def test_shapes_hold_no_numbers() -> None:
    model = shapes(vocab_size=1_000_000, hidden_size=4096)
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())
