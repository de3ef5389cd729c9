"""The fast paths against dense attention from the relation, and their choice against the literal loops."""

import pytest
import torch
from torch import Tensor

from sortyard.ops import BucketRelation, BucketSpec, bucket_attention, bucket_relation, make_segments
from sortyard.ops.bucket_attention.compiled import why_not
from sortyard.ops.bucket_attention.dense import visible_pairs
from sortyard.ops.bucket_attention.reference import attend_relation

SPECS = {
    "tree": BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20),
    "tree-defaults": BucketSpec(),
    "tree-by-keys": BucketSpec(bucket_size=8, near_buckets=2, beam=3, split="keys", score="mean"),
    "tree-by-queries": BucketSpec(
        bucket_size=8, near_buckets=2, beam=3, power_steps=2, split="queries", score="spread"
    ),
    "tree-by-queries-and-mean": BucketSpec(bucket_size=8, near_buckets=2, beam=3, split="queries", score="mean"),
    "tree-tiny-buckets": BucketSpec(
        bucket_size=1, query_chunk=10, near_buckets=3, beam=4, power_steps=2, local_window=0, num_global_tokens=3
    ),
    "tree-random-directions": BucketSpec(bucket_size=6, near_buckets=2, beam=2, power_steps=0, num_global_tokens=0),
    "tree-num-buckets": BucketSpec(num_buckets=16, near_buckets=2, beam=2, dense_up_to=20),
    "tree-target": BucketSpec(target_sparsity=0.5, bucket_size=4, local_window=2, dense_up_to=20),
    "rounds-num-buckets": BucketSpec(selection="rounds", num_buckets=9, dense_up_to=20),
    "rounds-target": BucketSpec(selection="rounds", target_sparsity=0.6, local_window=4, dense_up_to=20),
}
HASHES = ("gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum")
for name in HASHES:
    for multiset in (False, True):
        SPECS[f"rounds-{name}{'-multiset' * multiset}"] = BucketSpec(
            selection="rounds",
            hash=name,
            bucket_size=6,
            multiset=multiset,
            local_window=3,
            num_hash_rounds=3,
            dense_up_to=20,
        )


def draw(length: int, *, batch: int = 2, heads: int = 2, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, batch, heads, length, width, dtype=torch.float64, generator=generator).unbind()
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def summaries(relation: BucketRelation, query_step: int = 7) -> list[list[tuple[tuple[int, ...], int]]]:
    """What each query's summaries stand for, whatever the nodes are numbered."""
    found = []
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in relation.near.shape[:3]))[::query_step].tolist():
        used = relation.counts[b, h, i].nonzero()[:, 0].tolist()
        found.append(
            sorted(
                (tuple(relation.members[b, h, m].nonzero()[:, 0].tolist()), int(relation.counts[b, h, i, m]))
                for m in used
            )
        )
    return found


def assert_values_and_gradients_agree(q: Tensor, k: Tensor, v: Tensor, spec: BucketSpec, **options: object) -> None:
    relation = bucket_relation(q, k, spec, **options)
    fast, dense = bucket_attention(q, k, v, spec, **options), attend_relation(q, k, v, relation)
    torch.testing.assert_close(fast, dense, rtol=0, atol=1e-12)
    weight = torch.randn(fast.shape, dtype=fast.dtype, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, dense)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def assert_choice_is_literal(q: Tensor, k: Tensor, spec: BucketSpec, **options: object) -> None:
    fast = bucket_relation(q, k, spec, **options)
    literal = bucket_relation(q, k, spec, **(options | {"backend": "reference"}))
    assert torch.equal(fast.near, literal.near)
    assert summaries(fast) == summaries(literal)
    if spec.multiset:
        assert torch.equal(fast.multiplicity, literal.multiplicity)


def assert_every_key_once(
    q: Tensor, k: Tensor, spec: BucketSpec, *, causal: bool, backend: str, **options: object
) -> None:
    relation = bucket_relation(q, k, spec, causal=causal, backend=backend, **options)
    segments = make_segments(q.shape[0], q.shape[2], device="cpu", **options)
    visible = visible_pairs(segments, causal=causal)[:, None]
    assert not (relation.near & ~visible).any()
    seen = relation.near.sum(-1) + relation.counts.sum(-1)
    assert torch.equal(seen, visible.sum(-1).expand_as(seen))


COMPILED = pytest.mark.skipif(why_not() is not None, reason=f"no compiled kernels here: {why_not()}")


def cases(names: list[str]) -> list[object]:
    """Each specification both ways (except kmeans, which needs the whole row), on each backend of its selection."""
    return [
        pytest.param(
            name,
            causal,
            backend,
            id=f"{name}-{'causal' if causal else 'bidirectional'}-{backend}",
            marks=COMPILED if backend == "compiled" else (),
        )
        for name in names
        for causal in (False, True)
        if not (causal and "kmeans" in name)
        for backend in (("cpu", "compiled") if name.startswith("tree") else ("cpu",))
    ]


@pytest.mark.parametrize("length", [1, 63, 100, 232])
@pytest.mark.parametrize(("name", "causal", "backend"), cases(list(SPECS)))
def test_fast_equals_dense_from_the_relation(name: str, length: int, causal: bool, backend: str) -> None:
    assert_values_and_gradients_agree(*draw(length), SPECS[name], causal=causal, backend=backend)


@pytest.mark.parametrize(
    ("name", "causal", "backend"), cases(["tree", "tree-defaults", "rounds-gray", "rounds-gray-multiset"])
)
def test_fast_equals_dense_from_the_relation_at_a_thousand(name: str, causal: bool, backend: str) -> None:
    assert_values_and_gradients_agree(*draw(1000, batch=1), SPECS[name], causal=causal, backend=backend)


@pytest.mark.parametrize("length", [63, 101])
@pytest.mark.parametrize(("name", "causal", "backend"), cases(list(SPECS)))
def test_choice_equals_the_literal_loops(name: str, length: int, causal: bool, backend: str) -> None:
    q, k, _ = draw(length)
    assert_choice_is_literal(q, k, SPECS[name], causal=causal, backend=backend)


@pytest.mark.parametrize(("name", "causal", "backend"), cases(["tree"]))
def test_deep_tree_equals_the_literal_loops(name: str, causal: bool, backend: str) -> None:
    q, k, _ = draw(1000, batch=1, heads=1)
    assert_choice_is_literal(q, k, SPECS[name], causal=causal, backend=backend)


@pytest.mark.parametrize(("name", "causal", "backend"), cases(["tree", "tree-tiny-buckets"]))
def test_equal_keys_are_split_by_position(name: str, causal: bool, backend: str) -> None:
    q, k, v = draw(200, width=1)  # wider keys may be alike and yet have products that rounding tells apart
    with torch.no_grad():
        k.round_()
    assert_choice_is_literal(q, k, SPECS[name], causal=causal, backend=backend)
    assert_values_and_gradients_agree(q, k, v, SPECS[name], causal=causal, backend=backend)


def layouts(length: int) -> dict[str, dict[str, Tensor]]:
    place, generator = torch.arange(length), torch.Generator().manual_seed(2)
    right = torch.stack([place < length, place < length - 33])
    holes = torch.rand(2, length, generator=generator) > 0.3
    holes[1] = False
    packed = torch.tensor([0, 70, 70, 81, length, length + 90, length + 120])
    return {
        "right-padding": {"key_padding_mask": right},
        "left-padding": {"key_padding_mask": right.flip(1)},
        "holes-and-an-empty-row": {"key_padding_mask": holes},
        "packing": {"cu_seqlens": packed},
        "packing-with-holes": {"cu_seqlens": packed, "key_padding_mask": holes.roll(1, 0) | right},
    }


LAYOUT_SPECS = ["tree", "rounds-gray", "rounds-kmeans", "rounds-random-multiset"]


@pytest.mark.parametrize("layout", layouts(130))
@pytest.mark.parametrize(("name", "causal", "backend"), cases(LAYOUT_SPECS))
def test_padding_and_packing(name: str, layout: str, causal: bool, backend: str) -> None:
    q, k, v = draw(130)
    options = layouts(130)[layout] | {"backend": backend}
    assert_values_and_gradients_agree(q, k, v, SPECS[name], causal=causal, **options)
    assert_choice_is_literal(q, k, SPECS[name], causal=causal, **options)
    if name == "tree":
        assert_every_key_once(q, k, SPECS[name], causal=causal, **options)


@pytest.mark.parametrize(("name", "causal", "backend"), cases(["tree", "rounds-gray", "rounds-gray-multiset"]))
def test_marked_global_tokens(name: str, causal: bool, backend: str) -> None:
    q, k, v = draw(130)
    marked = torch.rand(2, 130, generator=torch.Generator().manual_seed(3)) > 0.95
    options = {"global_tokens": marked, "causal": causal, "backend": backend, **layouts(130)["left-padding"]}
    assert_values_and_gradients_agree(q, k, v, SPECS[name], **options)
    assert_choice_is_literal(q, k, SPECS[name], **options)


@pytest.mark.parametrize("length", [1, 63, 100, 232, 1000])
@pytest.mark.parametrize(("name", "causal", "backend"), cases([name for name in SPECS if name.startswith("tree")]))
def test_tree_accounts_for_every_visible_key_once(name: str, length: int, causal: bool, backend: str) -> None:
    q, k, _ = draw(length, batch=1, heads=1)
    assert_every_key_once(q, k, SPECS[name], causal=causal, backend=backend)
