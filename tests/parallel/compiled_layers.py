"""Checks of compiled layers, each in a process of its own: compilers cannot look through the tests' checks of shapes.

Run by test_compiling: python -m tests.parallel.compiled_layers CHECK FOLDER
"""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sortyard.errors import InputError
from sortyard.model.block import Block
from sortyard.model.configuration import SortyardConfig
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.parallel.activation_checkpointing import checkpoint_activations
from sortyard.parallel.compiling import compile_layers, release_layers
from tests.training.test_real_model import real_model
from tests.training.tiny import TinySource, new_run, same_bits, tensors_of, train_tiny

TINY = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "moe_intermediate_size": 24, "num_experts": 4, "num_expert_groups": 2, "num_groups_per_tok": 2,
    "num_experts_per_tok": 2, "bucket_size": 4, "query_chunk": 8, "near_buckets": 2, "beam": 2, "local_window": 2,
    "dense_up_to": 8, "max_position_embeddings": 640,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"attention": "dense", "num_experts": 1, "norm_position": "post", "gated_ffn": False, "use_bias": True},
    "tree and experts": {},
    "causal": {"context": "running_mean", "causal": True},
}


def build(shape: str) -> SortyardForMaskedLM:
    torch.manual_seed(0)
    return SortyardForMaskedLM(SortyardConfig(**(TINY | SHAPES[shape]))).double().train()


def packed(*lengths: int, row: int = 64) -> dict[str, Tensor]:
    """One row of documents one after another, the rest of which is padding."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(5, 97, (1, row), generator=generator)
    real = (torch.arange(row) < sum(lengths)).long()[None]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return {"input_ids": ids * real, "attention_mask": real, "labels": ids, "cu_seqlens": bounds}


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": loss.detach()}


def loss_and_gradients_are_those_of_eager_layers(shape: str) -> None:
    eager, compiled = build(shape), build(shape)
    compile_layers(compiled)
    counts = torch._dynamo.utils.counters["stats"]
    for mode, batch in (("none", packed(30, 21)), ("full", packed(30, 21)), ("none", packed(13, 25, 9))):
        torch._dynamo.reset()
        counts.clear()
        checkpoint_activations(compiled, mode)  # type: ignore[arg-type]
        found, expected = gradients(compiled, batch), gradients(eager, batch)
        assert counts["unique_graphs"] >= (1 if shape == "dense" else 2)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def documents_of_other_lengths_do_not_compile_anew() -> None:
    model = build("tree and experts")
    compile_layers(model)
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    for lengths in ((30, 21), (13, 25, 9), (40, 11), (20, 20, 20)):
        gradients(model, packed(*lengths))
    before = counts["unique_graphs"]
    for lengths in ((31, 12), (9, 10, 11, 12), (50,), (17, 19, 23), (12, 12, 12, 12, 12)):
        gradients(model, packed(*lengths))
    assert counts["unique_graphs"] - before <= 1  # one document alone may be a case of its own


def short_documents_in_long_rows_share_a_graph() -> None:
    """Outside of graphs dense attention takes them out of the row."""
    torch._dynamo.reset()
    eager, compiled = build("dense"), build("dense")
    compile_layers(compiled)
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    for lengths in ((300, 200), (100, 200, 150, 90), (90, 90, 90, 90, 90), (250, 250, 50)):
        batch = packed(*lengths, row=600)
        found, expected = gradients(compiled, batch), gradients(eager, batch)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)
    assert counts["unique_graphs"] == 1


def released_layers_call_hooks_on_their_parts() -> None:
    model, called = build("tree and experts"), []
    compile_layers(model)
    gradients(model, packed(30, 21))
    release_layers(model)
    pickle.dumps(model)
    for layer in model.model.encoder.layers:
        layer.attention.register_forward_hook(lambda *_: called.append(1))
    gradients(model, packed(30, 21))
    assert len(called) == 3
    release_layers(nn.Linear(2, 2))
    with pytest.raises(InputError, match="set it to false"):
        compile_layers(nn.Linear(2, 2))


def training_resumes_to_the_bit_and_ends_like_eager_training(folder: Path) -> None:
    whole, resumed, eager = (new_run(folder / name) for name in ("whole", "resumed", "eager"))
    plain: dict[str, Any] = {"hidden_dropout_prob": 0.0}
    model, source = real_model(**plain), TinySource()
    train_tiny(whole, model=model, compile=True)
    source.fail_at = 5
    with pytest.raises(RuntimeError):
        train_tiny(resumed, model=real_model(**plain), source=source, checkpoint_every=3, compile=True)
    train_tiny(resumed, model=real_model(**plain), checkpoint_every=3, compile=True)
    assert same_bits(tensors_of(resumed, 8), tensors_of(whole, 8))
    train_tiny(eager, model=real_model(**plain))
    losses = [torch.tensor([line["loss"] for line in run.read_metrics("train")]) for run in (whole, eager)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert all(type(layer) is Block for layer in model.model.encoder.layers)


CHECKS: dict[str, Callable[[Path], None]] = {
    **{f"gradients, {shape}": lambda _, s=shape: loss_and_gradients_are_those_of_eager_layers(s) for shape in SHAPES},
    "other lengths": lambda _: documents_of_other_lengths_do_not_compile_anew(),
    "long rows": lambda _: short_documents_in_long_rows_share_a_graph(),
    "hooks": lambda _: released_layers_call_hooks_on_their_parts(),
    "training": training_resumes_to_the_bit_and_ends_like_eager_training,
}


if __name__ == "__main__":
    CHECKS[sys.argv[1]](Path(sys.argv[2]))
