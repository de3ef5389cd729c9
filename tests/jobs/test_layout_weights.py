"""Bytes of weights, gradients and optimizer against what torch and transformers really cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers.distributed import DistributedConfig

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.evaluation.cost import meta_model
from sortyard.jobs.layouts.pipeline import Chunk, stages_of_ranks
from sortyard.jobs.layouts.weights import Held, gathered, held_bytes, read_weights, weights_of
from sortyard.parallel.options import ParallelOptions, Schedule
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions

BASE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 101}
MIXED = {"expert_layers": [False, True], "use_bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"num_experts": 1},
    "experts": {},
    "shared": MIXED | {"shared_expert": True},
    "not-gated": MIXED | {"gated_ffn": False},
}
ALL = [Chunk(range(2), has_embeddings=True, has_head=True)]


def config_of(kind: str) -> SortyardConfig:
    return SortyardConfig(**BASE | KINDS[kind])


def estimated(kind: str, layout: ParallelOptions) -> Held:
    return held_bytes(weights_of(read_weights(meta_model(config_of(kind), head="masked_lm")), ALL), layout)


def local_bytes(model: Any) -> int:
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_holds_what_a_real_step_makes(kind: str) -> None:
    model = SortyardForMaskedLM(config_of(kind))
    optimizer = build_optimizer(model, OptimizerOptions())
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    held = estimated(kind, ParallelOptions(dp_shard=1))
    assert held.parameters == local_bytes(model)
    assert held.gradients == sum(weight.grad.nbytes for weight in model.parameters())
    assert held.optimizer == sum(value.nbytes for value in state)


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_parallelism_as_transformers_cuts(kind: str, pretended_processes: Callable, tmp_path: Path) -> None:
    SortyardForMaskedLM(config_of(kind)).save_pretrained(tmp_path)
    pretended_processes(2)
    model = SortyardForMaskedLM.from_pretrained(tmp_path, distributed_config=DistributedConfig(tp_size=2))
    assert estimated(kind, ParallelOptions(dp_shard=1, tp=2)).parameters == local_bytes(model)


@pytest.mark.parametrize("shards", [2, 8, 16])
def test_shards_as_fsdp_cuts(shards: int, pretended_processes: Callable) -> None:
    model = SortyardForMaskedLM(config_of("experts"))
    pretended_processes(shards)
    mesh = init_device_mesh("cpu", (shards,))
    few = model.config.num_experts < shards
    stacked = {id(weight) for layer in model.model.encoder.layers for weight in layer.ffn.parameters(recurse=False)}

    def place(weight: torch.nn.Parameter) -> Shard:
        return Shard(1) if few and id(weight) in stacked else Shard(0)

    for layer in model.model.encoder.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    fully_shard(model, mesh=mesh)
    assert estimated("experts", ParallelOptions(dp_shard=shards)).parameters == local_bytes(model)


def test_experts_are_cut_by_number_and_dense_weights_shard_over_their_processes_too() -> None:
    weights = weights_of(read_weights(meta_model(config_of("experts"), head="masked_lm")), ALL)
    layout = ParallelOptions(dp_shard=2, ep=4)
    experts = sum(weight.in_shard(layout) for weight in weights if weight.is_expert)
    assert experts == 2 * 8 * 3 * 512 * 32 // (4 * 2)
    assert gathered(weights, layout, experts=True) == 2 * experts
    norm = next(weight for weight in weights if weight.shape == (32,))
    assert norm.in_shard(layout) == 32 // 8


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zbv_zero_bubble"])
def test_stages_hold_every_weight_once_and_the_tied_embedding_at_both_ends(schedule: Schedule) -> None:
    model = meta_model(SortyardConfig(**BASE | {"num_hidden_layers": 5}), head="masked_lm")
    layout = ParallelOptions(dp_shard=1, pp=2, schedule=schedule)
    ranks = stages_of_ranks(layout, num_layers=5)
    assert sorted(layer for chunks in ranks for chunk in chunks for layer in chunk.layers) == list(range(5))
    sizes = [len(chunk.layers) for chunks in ranks for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1
    held = sum(held_bytes(weights_of(read_weights(model), chunks), layout).parameters for chunks in ranks)
    total = 4 * sum(weight.numel() for weight in model.parameters())
    assert held == total + (0 if schedule == "zbv_zero_bubble" else 4 * 101 * 32)
