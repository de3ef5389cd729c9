"""Activation checkpointing changes memory and time, and nothing else."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import CheckpointPolicy
from transformers import BertConfig, BertForMaskedLM

from sortyard.errors import InputError
from sortyard.model.configuration import SortyardConfig
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.parallel.activation_checkpointing import _policy, checkpoint_activations

LAYERS = 3
TINY = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 4, "num_expert_groups": 2,
    "num_groups_per_tok": 2, "num_experts_per_tok": 2, "bucket_size": 4, "query_chunk": 8, "near_buckets": 2, "beam": 2,
    "local_window": 2, "dense_up_to": 8, "max_position_embeddings": 128, "hidden_dropout_prob": 0.1,
}  # fmt: skip
SHAPES = {
    "dense": {"attention": "dense", "num_experts": 1},
    "dense, attention drops": {"attention": "dense", "num_experts": 1, "attention_probs_dropout_prob": 0.1},
    "tree": {"num_experts": 1},
    "tree and experts": {},
    "tree and experts, attention drops": {"attention_probs_dropout_prob": 0.1},
    "rounds": {"selection": "rounds"},
    "causal": {"context": "running_mean", "causal": True},
    "plain post-norm": {"norm_position": "post", "gated_ffn": False, "use_bias": True},
}
PEAKS = (("none", 1), ("full", 1), ("full", 2), ("selective", 1))
CHOICES = (("full", 1), ("full", 2), ("selective", 1), ("selective", 2))


def build(shape: str, dtype: torch.dtype) -> SortyardForMaskedLM:
    torch.manual_seed(0)
    return SortyardForMaskedLM(SortyardConfig(**(TINY | SHAPES[shape]))).to(dtype).train()


def gradients(model: nn.Module, *, mode: str, every: int = 1, rows: int = 2) -> dict[str, torch.Tensor]:
    checkpoint_activations(model, mode, every)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 97, (rows, 40), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 31:] = 0
    torch.manual_seed(7)
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_keep_every_bit(shape: str, dtype: torch.dtype) -> None:
    model = build(shape, dtype)
    plain = gradients(model, mode="none")
    assert len(plain) > 10
    for mode, every in CHOICES:
        found = gradients(model, mode=mode, every=every)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain), (mode, every)
    again = gradients(model, mode="none")
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("backend", ["cpu", "compiled"])
def test_gradients_keep_every_bit_with_each_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sortyard.ops.bucket_attention.backend import available_backends

    if backend not in available_backends("cpu"):
        pytest.skip("no compiler")
    monkeypatch.setenv("SORTYARD_BACKEND", backend)
    model = build("tree and experts", torch.float32)
    plain = gradients(model, mode="none")
    for mode, every in CHOICES:
        found = gradients(model, mode=mode, every=every)
        assert all(torch.equal(found[name], plain[name]) for name in plain), (mode, every)


def test_gradients_keep_every_bit_in_bf16() -> None:
    model = build("tree and experts", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain, *others = (gradients(model, mode=mode, every=every) for mode, every in (("none", 1), *CHOICES))
    assert all(torch.equal(found[name], plain[name]) for found in others for name in plain)


def peak_bytes(model: nn.Module, path: Path, *, mode: str, every: int = 1) -> int:
    """The most that a step holds beyond what there is before it, by torch's own account of its allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        gradients(model, mode=mode, every=every, rows=8)
    found.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    sizes = [event["args"] for event in events if event["name"] == "[memory]"]
    levels = list(itertools.accumulate(size["Bytes"] for size in sizes))
    return max(levels)


def test_peak_memory_falls(tmp_path: Path) -> None:
    model = build("tree and experts", torch.float32)
    gradients(model, mode="none")
    peaks = {choice: peak_bytes(model, tmp_path / "trace", mode=choice[0], every=choice[1]) for choice in PEAKS}
    assert peaks["full", 1] < 0.65 * peaks["none", 1]
    assert peaks["full", 1] < peaks["full", 2] < peaks["none", 1]
    assert peaks["full", 1] < peaks["selective", 1] < 0.9 * peaks["none", 1]


@pytest.mark.parametrize(("mode", "runs"), [("none", 1), ("full", 2), ("selective", 1)])
def test_selective_runs_compiled_attention_once(mode: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sortyard.ops.bucket_attention.backend import available_backends
    from sortyard.ops.bucket_attention.compiled import attention

    if "compiled" not in available_backends("cpu"):
        pytest.skip("no compiler")
    calls, choose = [], attention.choose_nodes
    monkeypatch.setenv("SORTYARD_BACKEND", "compiled")
    monkeypatch.setattr(attention, "choose_nodes", lambda *args, **named: calls.append(0) or choose(*args, **named))
    gradients(build("tree and experts", torch.float32), mode=mode)
    assert len(calls) == runs * LAYERS * 2  # a group of sequences for each of the two lengths


def test_layers_are_chosen_by_their_number_also_in_a_stage() -> None:
    model = build("tree and experts", torch.float32)
    checkpoint_activations(model, "full", 2)
    layers = model.model.encoder.layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, False, True]
    stage = copy.deepcopy(model)
    del stage.model.encoder.layers._modules["0"]  # as a later stage of a pipeline has them, names unchanged
    checkpoint_activations(stage, "full", 2)
    left = stage.model.encoder.layers._modules
    assert {name: layer.gradient_checkpointing for name, layer in left.items()} == {"1": False, "2": True}
    checkpoint_activations(model, "none")
    assert not any(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize(("mode", "every"), CHOICES)
def test_models_of_transformers_keep_every_bit(mode: str, every: int) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertForMaskedLM(config).train()
    plain, found = gradients(model, mode="none"), gradients(model, mode=mode, every=every)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


class Foreign(nn.Module):
    """A model of another library, with a switch of its own."""

    enabled = False

    def gradient_checkpointing_enable(self, kwargs: dict[str, bool]) -> None:
        assert kwargs == {"use_reentrant": False}
        self.enabled = True


def test_other_models_are_asked_themselves() -> None:
    model = Foreign()
    checkpoint_activations(model, "none")
    assert not model.enabled
    checkpoint_activations(model, "full")
    assert model.enabled
    checkpoint_activations(nn.Linear(1, 1), "none")


@pytest.mark.parametrize(
    ("model", "mode", "every", "words"),
    [
        (Foreign(), "selective", 1, "selective: Foreign has no layers .* it can do none or full"),
        (Foreign(), "full", 2, "full with activation_checkpointing_every 2: Foreign"),
        (nn.Linear(1, 1), "full", 1, "full: Linear has no layers .* it can do none$"),
    ],
)
def test_what_a_model_cannot_do_is_refused(model: nn.Module, mode: str, every: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        checkpoint_activations(model, mode, every)


def test_operators_that_draw_or_write_are_not_kept() -> None:
    aten, x = torch.ops.aten, torch.ones(1, 1, 4, 4)
    attend = aten._scaled_dot_product_flash_attention_for_cpu.default
    kept = {
        name: _policy(None, op, *args) is CheckpointPolicy.MUST_SAVE
        for name, op, args in (
            ("attention", attend, (x, x, x)),
            ("attention that drops", attend, (x, x, x, 0.1)),
            ("product", aten.mm.default, (x, x)),
            ("product into given memory", aten.mm.out, (x, x)),
            ("product of activations", aten.bmm.default, (x, x)),
            ("sum", aten.add.Tensor, (x, x)),
            ("sort", aten.sort.default, (x,)),
        )
    }
    assert [name for name, is_kept in kept.items() if is_kept] == ["attention", "product", "sort"]
    with torch.no_grad():
        assert _policy(None, aten.mm.default, x, x) is not CheckpointPolicy.MUST_SAVE
