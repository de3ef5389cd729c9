"""Where bucket attention must be dense attention, and what must never change a token."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops import (
    BucketSpec,
    bucket_attention,
    bucket_relation,
    expected_sparsity,
    make_segments,
    relation_sparsity,
)
from sortyard.ops.bucket_attention.dense import dense_attention
from sortyard.ops.bucket_attention.groups import make_groups
from sortyard.ops.bucket_attention.round_parts import make_parts
from sortyard.ops.bucket_attention.tree_choice import choose_by_tree
from sortyard.ops.bucket_attention.tree_columns import make_window

TREE = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20)
ROUNDS = BucketSpec(selection="rounds", bucket_size=6, local_window=3, dense_up_to=20)
BOTH = pytest.mark.parametrize("spec", [TREE, ROUNDS], ids=["tree", "rounds"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def draw(length: int, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(3, batch, 2, length, 8, dtype=dtype, generator=generator).unbind())


@CAUSAL
@pytest.mark.parametrize(
    "spec",
    [
        BucketSpec(dense_up_to=100),
        BucketSpec(selection="rounds", dense_up_to=100),
        BucketSpec(dense_up_to=0, num_buckets=1),
        BucketSpec(dense_up_to=0, bucket_size=8, near_buckets=16, beam=16),
    ],
    ids=["short", "short-rounds", "one-bucket", "all-near"],
)
def test_dense_cases_equal_torch_bit_for_bit(spec: BucketSpec, causal: bool) -> None:
    q, k, v = draw(100)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert torch.equal(bucket_attention(q, k, v, spec, causal=causal), expected)


def test_one_window_over_everything_is_dense() -> None:
    q, k, v = draw(100, dtype=torch.float64)
    spec = BucketSpec(selection="rounds", bucket_size=50, dense_up_to=0)
    assert torch.equal(bucket_attention(q, k, v, spec), F.scaled_dot_product_attention(q, k, v))


@CAUSAL
@BOTH
def test_each_row_alone_equals_the_row_in_the_batch(spec: BucketSpec, causal: bool) -> None:
    q, k, v = draw(150, batch=4, dtype=torch.float64)
    lengths = torch.tensor([150, 149, 97, 13])
    mask = torch.arange(150) < lengths[:, None]
    together = bucket_attention(q, k, v, spec, causal=causal, key_padding_mask=mask)
    for row, n in enumerate(lengths.tolist()):
        alone = bucket_attention(*(x[row : row + 1, :, :n] for x in (q, k, v)), spec, causal=causal)
        torch.testing.assert_close(together[row : row + 1, :, :n], alone, rtol=0, atol=1e-12)


@CAUSAL
@BOTH
def test_packed_rows_equal_single_rows(spec: BucketSpec, causal: bool) -> None:
    q, k, v = draw(150, batch=1, dtype=torch.float64)
    bounds = [0, 60, 75, 150]
    packed = bucket_attention(q, k, v, spec, causal=causal, cu_seqlens=torch.tensor(bounds))
    for start, end in pairwise(bounds):
        alone = bucket_attention(*(x[:, :, start:end] for x in (q, k, v)), spec, causal=causal)
        torch.testing.assert_close(packed[:, :, start:end], alone, rtol=0, atol=1e-12)


@BOTH
def test_what_lies_at_pads_changes_nothing(spec: BucketSpec) -> None:
    q, k, v = draw(150)
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) > 0.3
    clean = bucket_attention(q, k, v, spec, key_padding_mask=mask)
    dirty = (x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (q, k, v))
    assert torch.equal(bucket_attention(*dirty, spec, key_padding_mask=mask), clean)


@CAUSAL
@BOTH
@pytest.mark.parametrize("length", [15, 150])
def test_a_fully_padded_row_gives_zeros_and_finite_gradients(spec: BucketSpec, length: int, causal: bool) -> None:
    q, k, v = (x.requires_grad_() for x in draw(length))
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, 3:] = True
    out = bucket_attention(q, k, v, spec, causal=causal, key_padding_mask=mask)
    assert not out[1].any()
    assert not out[0, :, :3].any()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)))
    nothing = bucket_attention(q, k, v, spec, causal=causal, key_padding_mask=torch.zeros_like(mask))
    assert not nothing.any()


@pytest.mark.parametrize("at", [0, 1, 15, 16, 17, 100, 128, 148])
@pytest.mark.parametrize(
    "spec",
    [TREE, BucketSpec(bucket_size=16, query_chunk=10, near_buckets=1, beam=1, dense_up_to=0), ROUNDS]
    + [BucketSpec(selection="rounds", hash=name, bucket_size=4) for name in ("cross_polytope", "e2lsh", "sign_sum")],
    ids=["tree", "tree-uneven-chunks", "gray", "cross_polytope", "e2lsh", "sign_sum"],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_future_never_changes_the_past(spec: BucketSpec, at: int, seed: int) -> None:
    q, k, v = draw(150)
    generator = torch.Generator().manual_seed(seed)
    later = 3 * torch.randn(3, *q[:, :, at + 1 :].shape, generator=generator)
    edited = [torch.cat([x[:, :, : at + 1], y], 2) for x, y in zip((q, k, v), later, strict=True)]
    for backend in (None, "reference"):
        before = bucket_attention(q, k, v, spec, causal=True, backend=backend)[:, :, : at + 1]
        after = bucket_attention(*edited, spec, causal=True, backend=backend)[:, :, : at + 1]
        if spec.selection == "rounds" and backend is None:
            # Products of other shapes round differently: docs/decisions/0008.
            torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
        else:
            assert torch.equal(after, before)


def test_same_input_same_output() -> None:
    q, k, v = draw(150)
    assert torch.equal(bucket_attention(q, k, v, TREE), bucket_attention(q, k, v, TREE))


@CAUSAL
@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_close(spec: BucketSpec, dtype: torch.dtype, causal: bool) -> None:
    halves = [x.to(dtype).requires_grad_() for x in draw(150)]
    fulls = [x.detach().float().requires_grad_() for x in halves]
    half, full = (bucket_attention(*x, spec, causal=causal) for x in (halves, fulls))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.02)
    gradients = [torch.autograd.grad(out.sum(), x) for out, x in ((half, halves), (full, fulls))]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours.float() - theirs).norm() <= 0.02 * theirs.norm()


@BOTH
def test_autocast_leaves_the_choice_in_float32(spec: BucketSpec) -> None:
    q, k, v = draw(150)
    plain = bucket_attention(q, k, v, spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bucket_attention(q, k, v, spec), plain)


@CAUSAL
@BOTH
def test_dropout_keeps_the_mean(spec: BucketSpec, causal: bool) -> None:
    q, k, v = draw(150)
    torch.manual_seed(0)
    dropped = torch.stack([bucket_attention(q, k, v, spec, causal=causal, dropout_p=0.2) for _ in range(32)])
    full = bucket_attention(q, k, v, spec, causal=causal)
    assert (dropped.mean(0) - full).norm() < 0.15 * full.norm()
    assert dropped.std(0).mean() > 0.01


def test_sliding_window_of_dense_attention() -> None:
    q, k, v = draw(40, dtype=torch.float64)
    away = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=away <= 4)
    segments = make_segments(2, 40, device="cpu")
    torch.testing.assert_close(dense_attention(q, k, v, segments=segments, window=4), expected)


def clustered(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, queries and values around shared topics, in runs of 32 positions as in text."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.randn(24, 32, generator=generator)
    of = torch.randint(24, (length // 32,), generator=generator).repeat_interleave(32)
    q, k, v = (
        (topics[of] * spread + torch.randn(length, 32, generator=generator) * 0.5)[None, None]
        for spread in (1.5, 1.5, 1.0)
    )
    return q, k, v


def test_tree_beats_random_buckets_at_more_sparsity() -> None:
    q, k, v = clustered(1024)
    dense = F.scaled_dot_product_attention(q, k, v)
    segments, errors, sparsities = make_segments(1, 1024, device="cpu"), [], []
    for spec in (BucketSpec(), BucketSpec(selection="rounds", hash="random", bucket_size=32)):
        errors.append(((bucket_attention(q, k, v, spec) - dense).norm() / dense.norm()).item())
        sparsities.append(relation_sparsity(bucket_relation(q, k, spec), segments=segments))
    assert errors[0] < 0.5 * errors[1]
    assert sparsities[0] > sparsities[1] - 0.05


@CAUSAL
@pytest.mark.parametrize("selection", ["tree", "rounds"])
@pytest.mark.parametrize("target", [0.5, 0.6, 0.75])
def test_target_sparsity_is_met(selection: str, target: float, causal: bool) -> None:
    spec = BucketSpec(selection=selection, target_sparsity=target, bucket_size=8, beam=4, local_window=4)
    q, k, _ = draw(512, batch=1)
    found = relation_sparsity(
        bucket_relation(q, k, spec, causal=causal), segments=make_segments(1, 512, device="cpu"), causal=causal
    )
    assert target <= expected_sparsity(spec, 512, causal) <= found + 1e-9
    if (selection, causal) != ("rounds", True):  # a code's past keys need not fill its window
        assert found < target + 0.2


def test_expected_sparsity_rises_with_length() -> None:
    for causal in (False, True):
        found = [expected_sparsity(BucketSpec(), n, causal) for n in (1, 64, 256, 1024, 4096, 16384)]
        assert found[0] == found[1] == 0.0
        assert found == sorted(found)
        assert found[-1] > 0.97
    with pytest.raises(ValueError, match="length is 0"):
        expected_sparsity(BucketSpec(), 0, False)


def test_kmeans_is_refused_when_causal() -> None:
    q, k, v = draw(100)
    with pytest.raises(ValueError, match="use hash 'gray'"):
        bucket_attention(q, k, v, BucketSpec(selection="rounds", hash="kmeans"), causal=True)


def test_unknown_backend_and_doubled_segments_are_refused() -> None:
    q, k, v = draw(30)
    with pytest.raises(ValueError, match="backend is 'cuda'"):
        bucket_attention(q, k, v, TREE, backend="cuda")
    segments, mask = make_segments(2, 30, device="cpu"), torch.ones(2, 30, dtype=torch.bool)
    with pytest.raises(ValueError, match="one or the other"):
        bucket_attention(q, k, v, TREE, segments=segments, key_padding_mask=mask)
    with pytest.raises(ValueError, match="same batch"):
        bucket_attention(q[:1], k[:1], v[:1], TREE, segments=segments)


def test_reference_backend_agrees() -> None:
    q, k, v = draw(100, dtype=torch.float64)
    for spec in (TREE, ROUNDS):
        literal = bucket_attention(q, k, v, spec, backend="reference")
        torch.testing.assert_close(bucket_attention(q, k, v, spec), literal, rtol=0, atol=1e-12)


@CAUSAL
@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_a_window_wider_than_the_text_takes_no_more_room(selection: str, causal: bool) -> None:
    length = 50
    widths = {}
    for window in (length, 10 * length):
        spec = BucketSpec(selection=selection, bucket_size=4, query_chunk=8, dense_up_to=0, local_window=window)
        q, k, v = torch.randn(3, 1, 2, length, 8, generator=torch.Generator().manual_seed(0)).unbind()
        (group,) = make_groups(make_segments(1, length, device="cpu"), spec, causal=causal, global_tokens=None)
        if selection == "rounds":
            widths[window] = next(make_parts(q, k, spec, group=group, causal=causal)).keys.shape[-1]
        else:
            tree = choose_by_tree(q, k, spec, group=group, causal=causal)
            widths[window] = make_window(tree, spec, group=group, sequence=0).positions().shape[-1]
        out = bucket_attention(q, k, v, spec, causal=causal, backend="cpu")
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.testing.assert_close(out, dense)
    assert widths[length] == widths[10 * length]
