"""The estimate of activations against what autograd really saves."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sortyard.evaluation.activations import Cut, checkpoint_bytes, head_bytes, layer_bytes
from sortyard.evaluation.cost import keys_per_query, meta_model
from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions

TOLERANCE = 0.03
LENGTH, ROWS, TARGETS, VOCABULARY = 256, 4, 150, 500
LEADING = (ROWS, ROWS * LENGTH, 2 * ROWS * LENGTH, TARGETS)  # rows, tokens, copies of tokens, targets
MODELS = {
    "dense": {"attention": "dense", "num_experts": 1},
    "plain": {"attention": "dense", "num_experts": 1, "gated_ffn": False, "use_bias": True},
    "bucket": {"attention": "bucket", "num_experts": 1, "dense_up_to": 0},
    "experts": {"attention": "bucket", "num_experts": 8, "moe_intermediate_size": 96, "dense_up_to": 0},
}


@pytest.fixture(autouse=True)
def _grouped_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of GPUs, which a CPU runs too when it is asked to."""
    monkeypatch.setattr(sys.modules["sortyard.ops.grouped_mlp"], "choose_backend", lambda *_, **__: "grouped")


def options(name: str) -> ModelOptions:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return ModelOptions(**sizes | MODELS[name])


def build(name: str) -> Any:
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3}
    return build_model(options(name), head="masked_lm", vocab_size=VOCABULARY, tokenizer_ids=ids, seed=0)


def saved_bytes(run: Callable[[], Any], *, model: nn.Module, half: bool) -> int:
    """Bytes of the distinct tensors that autograd saves, without parameters and their 16-bit copies."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        is_copy_of_weight = tensor.dtype == torch.bfloat16 and tensor.shape[0] not in LEADING
        if tensor.untyped_storage().data_ptr() not in weights and not is_copy_of_weight:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    places = torch.randperm(ROWS * LENGTH, generator=generator)[:TARGETS]
    labels = torch.full((ROWS * LENGTH,), -100)
    labels[places] = ids.flatten()[places]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels.view_as(ids)}


def estimate(config: SortyardConfig, *, layers: float, half: bool) -> float:
    kept, _ = head_bytes(config, half=half)
    return ROWS * LENGTH * (2 * checkpoint_bytes(config) + layers) + TARGETS * kept


def of_layer(config: SortyardConfig, *, half: bool) -> float:
    return layer_bytes(config, layer=1, keys=keys_per_query(config, layer=1, length=LENGTH), half=half)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_estimate_is_what_autograd_saves(name: str, half: bool) -> None:
    model = build(name)
    measured = saved_bytes(lambda: model(**batch()), model=model, half=half)
    layers = model.config.num_hidden_layers * of_layer(model.config, half=half)
    assert estimate(model.config, layers=layers, half=half) == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["dense", "experts"])
def test_checkpointing_keeps_the_lines_between_layers_and_one_layer(name: str, half: bool) -> None:
    model = build(name)
    one_layer = {}

    def catch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        one_layer.update(args=args, kwargs=kwargs)

    hook = model.model.encoder.layers[1].register_forward_pre_hook(catch, with_kwargs=True)
    model.activation_checkpointing_enable({"use_reentrant": False})
    kept = saved_bytes(lambda: model(**batch()), model=model, half=half)
    hook.remove()
    lines = model.config.num_hidden_layers * checkpoint_bytes(model.config)
    assert estimate(model.config, layers=lines, half=half) == pytest.approx(kept, rel=TOLERANCE)

    model.activation_checkpointing_disable()  # the same layer once more, as the backward pass runs it
    layer = model.model.encoder.layers[1]
    recomputed = saved_bytes(lambda: layer(*one_layer["args"], **one_layer["kwargs"]), model=model, half=half)
    assert ROWS * LENGTH * of_layer(model.config, half=half) == pytest.approx(recomputed, rel=TOLERANCE)


def test_tensor_parallelism_cuts_heads_and_inner_widths_by_hand() -> None:
    config = meta_model(SortyardConfig.from_options(options("dense"), vocab_size=VOCABULARY), head="masked_lm").config
    whole, half_of_it = (layer_bytes(config, layer=0, keys=0, half=True, cut=Cut(tp=tp)) for tp in (1, 2))
    cut = 2 * (4 * 64 + 4 * 256) + 4 * 4  # q, k, v, o and four inner widths; a log-sum-exp a head
    assert whole - half_of_it == cut / 2
    lines = layer_bytes(config, layer=0, keys=0, half=True, cut=Cut(tp=2, residuals=2))
    assert half_of_it - lines == (2 * 4 * 64 + 16) / 2
    assert head_bytes(config, half=True, cut=Cut(tp=2)) == (4 * 2 * 64 + 4 * 250, 8 * 250)
