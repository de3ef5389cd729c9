"""Where dense attention ends, what sparsity counts, and what must not follow the depth of a tree."""

import pytest
import torch

from sortyard.ops import BucketSpec, bucket_relation, lsh_codes, make_segments, relation_sparsity
from sortyard.ops.bucket_attention.shapes import TreeShape, resolve_shape
from sortyard.ops.lsh_tree import split_directions

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@CAUSAL
@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_dense_up_to_is_inclusive(selection: str, causal: bool) -> None:
    spec = BucketSpec(selection=selection, bucket_size=2, query_chunk=4, near_buckets=1, beam=1, dense_up_to=70)
    assert resolve_shape(spec, 70, causal) is None
    assert resolve_shape(spec, 71, causal) is not None


def test_near_enough_leaves_behind_a_narrow_beam_are_not_dense() -> None:
    spec = BucketSpec(bucket_size=8, near_buckets=16, beam=2, dense_up_to=0)
    assert isinstance(resolve_shape(spec, 100, False), TreeShape)
    assert resolve_shape(BucketSpec(bucket_size=8, near_buckets=16, beam=8, dense_up_to=0), 100, False) is None


@pytest.mark.parametrize("length", [100, 1000, 5000])
def test_a_fixed_number_of_buckets_does_not_follow_the_length(length: int) -> None:
    shape = resolve_shape(BucketSpec(num_buckets=16), length, False)
    assert isinstance(shape, TreeShape)
    assert 2**shape.levels == 16
    follows = resolve_shape(BucketSpec(bucket_size=16), length, False)
    assert isinstance(follows, TreeShape)
    assert 8 <= follows.bucket_size <= 16


def test_summaries_count_as_keys() -> None:
    spec = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, dense_up_to=0)
    q, k = torch.randn(2, 1, 2, 150, 8, generator=torch.Generator().manual_seed(0))
    relation = bucket_relation(q, k, spec)
    used = int((relation.counts > 0).sum())
    assert used > 0
    found = relation_sparsity(relation, segments=make_segments(1, 150, device="cpu"))
    assert found == pytest.approx(1 - (int(relation.near.sum()) + used) / (2 * 150 * 150))


def test_split_directions_do_not_follow_the_depth() -> None:
    deep = split_directions(12, head_dim=8, seed=4)
    assert torch.equal(split_directions(3, head_dim=8, seed=4), deep[:3])
    assert not torch.equal(split_directions(3, head_dim=8, seed=5), deep[:3])


@pytest.mark.parametrize("name", ["gray", "cross_polytope", "e2lsh", "kmeans"])
def test_a_shared_offset_does_not_change_centred_codes(name: str) -> None:
    x = torch.randn(1, 1, 60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spec = BucketSpec(selection="rounds", hash=name)
    assert torch.equal(lsh_codes(x, spec), lsh_codes(x + 3.0, spec))
    if name != "kmeans":
        assert torch.equal(lsh_codes(x, spec, causal=True), lsh_codes(x + 3.0, spec, causal=True))


def test_sign_sum_is_not_centred_as_the_seed_has_it() -> None:
    x = torch.randn(1, 1, 60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spec = BucketSpec(selection="rounds", hash="sign_sum")
    assert not torch.equal(lsh_codes(x, spec), lsh_codes(x + 3.0, spec))


def test_pads_do_not_move_the_centre() -> None:
    x = torch.randn(1, 1, 60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = torch.arange(60)[None] < 41
    spec = BucketSpec(selection="rounds")
    found = lsh_codes(x.masked_fill(~real[:, None, :, None], 50.0), spec, real=real)
    assert torch.equal(found[..., :41], lsh_codes(x[:, :, :41], spec))
