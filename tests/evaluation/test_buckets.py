"""Bucket layers measured on a model's own queries and keys."""

from typing import Any

import pytest
import torch

from sortyard.evaluation.buckets import bucket_maps, bucket_quality, capture_bucket_inputs
from sortyard.model.factory import build_model
from tests.evaluation.conftest import tiny_options


def model_with(**settings: Any) -> Any:
    head = settings.pop("head", "masked_lm")
    options = tiny_options(**settings)
    return build_model(options, head=head, vocab_size=40, tokenizer_ids={"pad_token_id": 0}, seed=0)


def batch(length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1, 40, (1, length), generator=torch.Generator().manual_seed(0))}


def test_short_sequences_are_dense() -> None:
    for layer in bucket_quality(model_with(), batch=batch(16)):
        assert layer.mass_kept == pytest.approx(1, abs=1e-5)
        assert layer.output_error == pytest.approx(0, abs=1e-5)
        assert layer.sparsity == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_long_sequences_are_sparse(selection: str) -> None:
    qualities = bucket_quality(model_with(selection=selection), batch=batch(96))
    assert [quality.layer for quality in qualities] == [0, 1]
    for quality in qualities:
        assert 0 < quality.mass_kept < 1
        assert 0 < quality.sparsity < 1
        assert quality.output_error > 0


def test_tree_reaches_every_key_once() -> None:
    maps = bucket_maps(capture_bucket_inputs(model_with(), batch=batch(96))[0])
    assert not (maps.exact & maps.summarised).any()
    assert (maps.exact | maps.summarised).all()
    torch.testing.assert_close(maps.mass.sum(-1), torch.ones(2, 96))


def test_causal_maps_never_look_ahead() -> None:
    settings = {"head": "causal_lm", "context": "running_mean"}
    maps = bucket_maps(capture_bucket_inputs(model_with(**settings), batch=batch(96))[1])
    ahead = torch.ones(96, 96, dtype=torch.bool).triu(1)
    assert not (maps.exact & ahead).any()
    assert not (maps.summarised & ahead).any()
    assert not (maps.mass[:, ahead] > 0).any()
    assert 0 < maps.quality.sparsity < 1


def test_dense_layers_are_left_out_and_hooks_removed() -> None:
    model = model_with(attention="dense")
    assert bucket_quality(model, batch=batch(96)) == []
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert model.training
