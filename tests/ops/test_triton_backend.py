"""The Triton kernels against dense attention from their own relation: on a GPU where there is one, else interpreted."""

# ruff: noqa: E402
# Triton decides at import whether its functions are interpreted, so the variable comes before the imports.

import os
import subprocess
import sys
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton was imported before TRITON_INTERPRET=1 could be set", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed")

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation, make_segments
from sortyard.ops.bucket_attention import groups
from sortyard.ops.bucket_attention.groups import _group_key, make_groups
from sortyard.ops.bucket_attention.reference import attend_relation
from sortyard.ops.bucket_attention.triton_backend import attend, is_available, triton_choose, triton_tree_attention
from sortyard.ops.bucket_attention.triton_backend import tree as launches
from sortyard.ops.bucket_attention.triton_backend.problem import make_problem

SPEC = BucketSpec(
    bucket_size=8,
    query_chunk=16,
    near_buckets=2,
    beam=3,
    local_window=5,
    dense_up_to=20,
    split="queries",
    score="spread",
)
PLAIN = replace(SPEC, split="keys", score="mean")
TINY = launches.Blocking(subtree=16, node=32, tile=32, rows=16, scan=64, leaves=2, nodes=2)
BOTH = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def draw(
    length: int, *, batch: int = 1, heads: int = 1, width: int = 16, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    made = torch.randn(3, batch, heads, length, width, dtype=torch.float64, generator=generator).to(DEVICE, dtype)
    q, k, v = made.unbind()
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_agrees(
    inputs: tuple[Tensor, Tensor, Tensor], spec: BucketSpec, *, atol: float, same_choice: bool = True, **options: object
) -> None:
    q, k, v = inputs
    relation = bucket_relation(q, k, spec, backend="triton", **options)
    if same_choice:
        plain = bucket_relation(q, k, spec, backend="cpu", **options)
        assert torch.equal(relation.near, plain.near)
        assert torch.equal(relation.counts, plain.counts)
        assert torch.equal(relation.members, plain.members)
    ours = gradients(bucket_attention(q, k, v, spec, backend="triton", **options), inputs)
    dense = gradients(attend_relation(q, k, v, relation), inputs)
    for mine, theirs in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(("length", "causal"), [(65, False), (65, True), (100, True)])
def test_values_and_gradients_equal_dense_from_the_relation(length: int, causal: bool) -> None:
    assert_agrees(draw(length), SPEC, atol=1e-12, causal=causal)


def uneven(length: int, *, heads: int = 2, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of unlike spreads about a common mean, and queries that see some directions more than others."""
    q, k, v = (x.detach() for x in draw(length, heads=heads, width=width))
    seen = torch.linspace(0, 2, width, dtype=torch.float64, device=DEVICE)
    q, k = q * seen, k * torch.rand(length, 1, dtype=torch.float64, device=DEVICE) ** 2 + seen
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def assert_same_choice(q: Tensor, k: Tensor, spec: BucketSpec, *, other: str, **options: object) -> None:
    ours, theirs = (bucket_relation(q, k, spec, backend=backend, **options) for backend in ("triton", other))
    assert torch.equal(ours.near, theirs.near)
    # The reference numbers its nodes in another order, so what stands over each key is compared.
    ours_over, theirs_over = (
        [counts.double() @ members.double(), (counts > 0).double() * members.sum(-1)[..., None, :] @ members.double()]
        for counts, members in ((x.counts, x.members) for x in (ours, theirs))
    )
    assert all(torch.equal(one, other) for one, other in zip(ours_over, theirs_over, strict=True))


@pytest.mark.parametrize(
    ("length", "split", "score"), [(65, "queries", "mean"), (65, "keys", "spread"), (300, "queries", "spread")]
)
def test_the_queries_and_the_spread_choose_as_defined(length: int, split: str, score: str) -> None:
    q, k, _ = uneven(length)
    spec = replace(SPEC, split=split, score=score)
    assert_same_choice(q, k, spec, other="reference")
    plain = bucket_relation(q, k, PLAIN, backend="triton")
    assert not torch.equal(bucket_relation(q, k, spec, backend="triton").near, plain.near)


@pytest.mark.parametrize(("split", "score"), [("keys", "mean"), ("queries", "mean"), ("keys", "spread")])
def test_values_and_gradients_by_other_choices(split: str, score: str) -> None:
    assert_agrees(uneven(60, heads=1), replace(SPEC, split=split, score=score), atol=1e-12)


def test_sequences_of_a_batch_choose_by_their_own_queries_and_spreads() -> None:
    q, k, v = (x.detach().repeat(2, 1, 1, 1) for x in uneven(80))
    mask = torch.arange(80, device=DEVICE) < torch.tensor([[80], [71]], device=DEVICE)
    dirty = [x.masked_fill(~mask[:, None, :, None], 1e3).requires_grad_() for x in (q, k, v)]
    assert_same_choice(dirty[0], dirty[1], SPEC, other="reference", key_padding_mask=mask)
    assert_agrees((dirty[0], dirty[1], dirty[2]), SPEC, atol=1e-12, key_padding_mask=mask)


def test_spreads_of_large_leaves_survive_a_common_shift() -> None:
    q, k, _ = uneven(130)
    spec = replace(PLAIN, score="spread", bucket_size=40)
    plain = bucket_relation(q, k, replace(spec, score="mean"), backend="triton")
    assert not torch.equal(bucket_relation(q, k, spec, backend="triton").near, plain.near)
    assert_same_choice(q, k.detach() + 1e5, spec, other="reference")


def test_keys_without_any_spread_tie_to_the_lower_node() -> None:
    q, k, _ = draw(70)
    same = torch.ones_like(k)
    assert_same_choice(q, same, SPEC, other="reference")


@BOTH
def test_chunks_of_several_tiles(causal: bool) -> None:
    spec = replace(SPEC, query_chunk=40)
    assert_agrees(draw(90, dtype=torch.float32), spec, atol=1e-5, causal=causal)


def test_default_settings() -> None:
    assert_agrees(draw(233, dtype=torch.float32), BucketSpec(dense_up_to=64), atol=1e-5)


@pytest.mark.parametrize(("power_steps", "width"), [(0, 16), (1, 16), (2, 40)])
def test_nodes_larger_than_one_program(power_steps: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "BLOCKING", TINY)
    spec = replace(SPEC, power_steps=power_steps, bucket_size=16, query_chunk=70)
    q, k, _ = uneven(70, heads=1, width=width)
    assert_same_choice(q, k, spec, other="reference")
    assert_same_choice(q.float(), k.float(), replace(spec, split="keys", score="mean"), other="cpu")


def layouts(length: int) -> dict[str, dict[str, Tensor]]:
    place, generator = torch.arange(length), torch.Generator().manual_seed(2)
    holes = torch.rand(2, length, generator=generator) > 0.3
    marked = torch.rand(2, length, generator=generator) > 0.95
    padded = torch.stack([place < length, place >= 33])
    return {
        "padding-and-marked-globals": {"key_padding_mask": padded.to(DEVICE), "global_tokens": marked.to(DEVICE)},
        "packing-with-holes": {
            "cu_seqlens": torch.tensor([0, 60, 60, 71, length, length + 50, 2 * length - 3], device=DEVICE),
            "key_padding_mask": (holes | padded).to(DEVICE),
        },
    }


@pytest.mark.parametrize(("layout", "causal"), [("padding-and-marked-globals", False), ("packing-with-holes", True)])
def test_padding_and_packing(layout: str, causal: bool) -> None:
    assert_agrees(draw(80, batch=2, dtype=torch.float32), SPEC, atol=1e-5, causal=causal, **layouts(80)[layout])


@BOTH
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_the_wider_groups_of_a_gpu_change_no_sequence(
    backend: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_a_gpu(*args: Any, on_cpu: bool, **options: Any) -> Hashable:
        return _group_key(*args, on_cpu=False, **options)

    monkeypatch.setattr(groups, "_group_key", as_on_a_gpu)
    bounds = torch.tensor(
        [0, 5, 24, 54, 86, 119, 160, 224, 240], device=DEVICE
    )  # of one tree depth: 30 to 32, 33 to 64
    inputs = draw(240, heads=2)
    segments = make_segments(1, 240, cu_seqlens=bounds, device=DEVICE)
    found = make_groups(segments, SPEC, causal=causal, global_tokens=None)
    assert causal or len(found) == 4
    packed = gradients(bucket_attention(*inputs, SPEC, causal=causal, cu_seqlens=bounds, backend=backend), inputs)
    weight = torch.randn(packed[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for first, last in pairwise(bounds.tolist()):
        alone = tuple(x[:, :, first:last].detach().requires_grad_() for x in inputs)
        out = bucket_attention(*alone, SPEC, causal=causal, backend=backend)
        grads = torch.autograd.grad((out * weight[:, :, first:last]).sum(), alone)
        for mine, theirs in zip(packed, (out, *grads), strict=True):
            torch.testing.assert_close(mine[:, :, first:last], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [20, 32, 64, 128])
def test_head_widths(width: int) -> None:
    assert_agrees(draw(40, width=width, dtype=torch.float32), SPEC, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_short_floats_err_at_most_twice_as_much_as_dense_torch(dtype: torch.dtype) -> None:
    inputs = draw(50, width=32, dtype=dtype)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    relation = bucket_relation(*inputs[:2], SPEC, backend="triton")
    truth = gradients(attend_relation(*exact, relation), exact)
    ours = gradients(bucket_attention(*inputs, SPEC, backend="triton"), inputs)
    twin = gradients(_dense_in_dtype(*inputs, relation.near, relation.members, relation.counts), inputs)
    for mine, theirs, true in zip(ours, twin, truth, strict=True):
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max()


def _dense_in_dtype(q: Tensor, k: Tensor, v: Tensor, near: Tensor, members: Tensor, counts: Tensor) -> Tensor:
    """Materialised attention from a relation, every product in the inputs' dtype."""
    share = (members / members.sum(-1, keepdim=True)).to(q.dtype)
    keys, values = (torch.cat([x, share @ x], -2) for x in (k, v))
    bias = torch.cat([near.float(), counts.float()], -1).log()
    weights = (q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return weights.to(q.dtype) @ values


@pytest.fixture
def poisoned() -> Iterator[pytest.MonkeyPatch]:
    """Fill every buffer that torch leaves uninitialised with NaN, or a number that no node or position has."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            make = getattr(torch, name)

            def make_poisoned(*sizes: object, make: object = make, **options: object) -> Tensor:
                made: Tensor = make(*sizes, **options)
                return made.fill_(float("nan") if made.is_floating_point() else 1 << 20)

            patch.setattr(torch, name, make_poisoned)
        yield patch


@BOTH
def test_nothing_reads_pads_or_uninitialised_memory(causal: bool, poisoned: pytest.MonkeyPatch) -> None:
    poisoned.setattr(launches, "BLOCKING", TINY)
    # The shorter sequence must have the same tree shape; the causal one leaves a whole chunk to pads.
    clean, shorter = draw(60, batch=2, dtype=torch.float32), 48 if causal else 57
    mask = torch.arange(60, device=DEVICE) < torch.tensor([[60], [shorter]], device=DEVICE)
    segments = make_segments(2, 60, key_padding_mask=mask, device=DEVICE)
    group = make_groups(segments, SPEC, causal=causal, global_tokens=None)[0]
    assert group.lengths == (60, shorter)
    dirty = tuple(x.detach().masked_fill(~mask[:, None, :, None], torch.nan).requires_grad_() for x in clean)
    found = [
        gradients(triton_tree_attention(*inputs, SPEC, group=group, causal=causal, dropout_p=0.0), inputs)
        for inputs in (clean, dirty)
    ]
    for expected, result in zip(*found, strict=True):
        keep = mask[:, None, :, None].expand_as(result)
        torch.testing.assert_close(result[keep], expected[keep], rtol=0, atol=1e-6)
        assert not result[~keep].any()


def test_model_layout_is_read_and_written_without_copies() -> None:
    inputs = tuple(x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in draw(40, heads=2))
    out = bucket_attention(*inputs, SPEC, backend="triton")
    assert out.stride() == inputs[0].stride()
    torch.testing.assert_close(out, bucket_attention(*inputs, SPEC, backend="cpu"), rtol=0, atol=1e-12)


def test_wide_beams_choose_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = draw(60)
    for causal in (False, True):
        group = make_groups(make_segments(1, 60, device=DEVICE), SPEC, causal=causal, global_tokens=None)[0]
        monkeypatch.setattr(launches, "BLOCKING", launches.Blocking())
        narrow = triton_choose(q, k, SPEC, group=group, causal=causal)
        monkeypatch.setattr(launches, "BLOCKING", launches.Blocking(lanes=1))
        wide = triton_choose(q, k, SPEC, group=group, causal=causal)
        assert torch.equal(narrow.choice.near, wide.choice.near)
        for one, other in zip(narrow.choice.far, wide.choice.far, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one.sort(-1).values, other.sort(-1).values)


def test_equal_keys_go_left_by_position() -> None:
    q, k, _ = draw(100)
    group = make_groups(make_segments(1, 100, device=DEVICE), SPEC, causal=False, global_tokens=None)[0]
    tree = triton_choose(q, k[..., :1, :].expand_as(k), SPEC, group=group, causal=False)
    leaf = (tree.leaves.slot_of // tree.leaves.width)[0, 0]
    assert leaf.tolist() == [((position + 1) * 16 - 1) // 100 for position in range(100)]


def test_the_package_imports_without_triton() -> None:
    assert is_available(DEVICE)
    code = "import sys; sys.modules['triton'] = None; import sortyard.ops.bucket_attention.triton_backend"
    subprocess.run([sys.executable, "-c", code], check=True)


@BOTH
def test_more_sequences_than_a_grid_takes_go_in_several_launches(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs = draw(60, batch=5, heads=2)
    mask = torch.arange(60, device=DEVICE) < torch.tensor([[60], [43], [51], [44], [60]], device=DEVICE)
    options = {"causal": causal, "backend": "triton", "key_padding_mask": mask}
    whole = gradients(bucket_attention(q, k, v, SPEC, **options), inputs)
    monkeypatch.setattr(attend, "_MOST_PAIRS", 5)
    calls = []
    monkeypatch.setattr(
        attend, "make_problem", lambda shape, *args, **kw: calls.append(shape) or make_problem(shape, *args, **kw)
    )
    parts = gradients(bucket_attention(q, k, v, SPEC, **options), inputs)
    assert all(S * H <= 5 for S, H, _, _ in calls)
    assert sum(S for S, *_ in calls) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts, whole, strict=True))
