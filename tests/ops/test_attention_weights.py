"""Materialised weights: they are the attention, token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops import BucketSpec, Segments, bucket_attention, bucket_relation, dense_attention, make_segments
from sortyard.ops.bucket_attention import bucket_weights, dense_weights

SPECS = {
    "tree": BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20),
    "rounds": BucketSpec(selection="rounds", bucket_size=6, local_window=3, dense_up_to=20),
    "multiset": BucketSpec(
        selection="rounds", bucket_size=6, local_window=3, num_hash_rounds=3, multiset=True, dense_up_to=20
    ),
    "dense": BucketSpec(dense_up_to=200),
}
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
LAYOUTS = {
    "full": {},
    "holes": {"key_padding_mask": torch.rand(2, 130, generator=torch.Generator().manual_seed(2)) > 0.3},
    "packed": {"cu_seqlens": torch.tensor([0, 70, 81, 130, 220])},
}


def draw(*, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 2, 2, 130, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)).unbind()


def segments_of(layout: str) -> Segments:
    return make_segments(2, 130, device="cpu", **LAYOUTS[layout])


def assert_rows_add_up(weights: Tensor, segments: Segments) -> None:
    real = (segments.ids >= 0)[:, None].expand(weights.shape[:3])
    torch.testing.assert_close(weights.sum(-1), real.to(weights), rtol=0, atol=1e-12)
    assert (weights >= 0).all()


def assert_within_sequences(weights: Tensor, segments: Segments, *, causal: bool) -> None:
    ids, positions = segments.ids, segments.positions
    foreign = (ids[:, :, None] != ids[:, None, :]) | (ids < 0)[:, None, :]
    if causal:
        foreign = foreign | (positions[:, None, :] > positions[:, :, None])
    assert not weights[foreign[:, None].expand_as(weights)].any()


@CAUSAL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECS)
def test_bucket_weights_times_values_are_the_output(name: str, layout: str, causal: bool) -> None:
    q, k, v = draw()
    segments = segments_of(layout)
    weights = bucket_weights(q, k, SPECS[name], segments=segments, causal=causal)
    expected = bucket_attention(q, k, v, SPECS[name], segments=segments, causal=causal)
    torch.testing.assert_close(weights @ v, expected, rtol=0, atol=1e-12)
    assert_rows_add_up(weights, segments)
    assert_within_sequences(weights, segments, causal=causal)


@CAUSAL
def test_marked_global_tokens_enter_the_weights(causal: bool) -> None:
    q, k, v = draw()
    segments, marked = segments_of("holes"), torch.zeros(2, 130, dtype=torch.bool)
    marked[:, [40, 41, 90]] = True
    options = {"segments": segments, "causal": causal, "global_tokens": marked}
    weights = bucket_weights(q, k, SPECS["rounds"], **options)
    torch.testing.assert_close(weights @ v, bucket_attention(q, k, v, SPECS["rounds"], **options), rtol=0, atol=1e-12)
    assert (weights[0, 0, :, 90] > 0).sum() > (
        bucket_weights(q, k, SPECS["rounds"], segments=segments)[0, 0, :, 90] > 0
    ).sum() or causal


def test_a_pair_met_more_often_weighs_more() -> None:
    q, k = torch.zeros(2, 1, 1, 130, 8, dtype=torch.float64)
    segments = make_segments(1, 130, device="cpu")
    weights = bucket_weights(q, k, SPECS["multiset"], segments=segments)
    times = bucket_relation(q, k, SPECS["multiset"], segments=segments).multiplicity
    assert times is not None
    assert times.max() > 1
    torch.testing.assert_close(weights, times / times.sum(-1, keepdim=True).double(), rtol=0, atol=1e-12)


@CAUSAL
@pytest.mark.parametrize("window", [None, 0, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_weights_times_values_are_the_output(layout: str, window: int | None, causal: bool) -> None:
    q, k, v = draw()
    segments = segments_of(layout)
    weights = dense_weights(q, k, segments=segments, causal=causal, window=window)
    expected = dense_attention(q, k, v, segments=segments, causal=causal, window=window)
    torch.testing.assert_close(weights @ v, expected, rtol=0, atol=1e-12)
    assert_rows_add_up(weights, segments)
    assert_within_sequences(weights, segments, causal=causal)
    if window is not None:
        away = (segments.positions[:, :, None] - segments.positions[:, None, :]).abs() > window
        assert not weights[away[:, None].expand_as(weights)].any()


def test_dense_weights_are_a_plain_softmax() -> None:
    q, k, _ = draw()
    found = dense_weights(q, k, segments=segments_of("full"))
    torch.testing.assert_close(found, F.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_weights_are_float32_or_wider(dtype: torch.dtype) -> None:
    q, k, _ = draw(dtype=dtype)
    segments = segments_of("full")
    for weights in (dense_weights(q, k, segments=segments), bucket_weights(q, k, SPECS["tree"], segments=segments)):
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 130))
