"""Tree attention's own pass: ties, keys that are not finite, dropout, blocks, and what it keeps for the backward."""

import pytest
import torch
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention
from sortyard.ops.bucket_attention import tree_pass
from sortyard.ops.lsh_tree import build_leaves
from sortyard.ops.lsh_tree.reference import content_tree

SPEC = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def draw(length: int = 150, *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    drawn = torch.randn(3, 2, 2, length, 8, dtype=dtype, generator=generator).unbind()
    return [x.requires_grad_() for x in drawn]


@pytest.mark.parametrize("queries", [False, True], ids=["keys", "queries"])
@pytest.mark.parametrize(("n", "levels"), [(64, 3), (61, 4)])
def test_equal_projections_go_left_by_position(n: int, levels: int, queries: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-1, 2, (1, 2, n, 1), generator=generator).double()
    asked = torch.randn(1, 2, n, 1, dtype=torch.float64, generator=generator) if queries else None
    real = torch.ones(1, n, dtype=torch.bool)
    is_even = n % 2**levels == 0
    leaves = build_leaves(keys, real=real, is_even=is_even, levels=levels, power_steps=1, seed=0, queries=asked)
    for h in range(2):
        own = None if asked is None else asked[0, h]
        root = content_tree(keys[0, h], levels=levels, power_steps=1, seed=0, queries=own)
        expected = [node.keys for node in root.all_nodes() if not node.children]
        used = leaves.order.new_ones(leaves.order.shape[-1]).bool() if leaves.used is None else leaves.used[0]
        rows = zip(leaves.order[0, h].view(-1, leaves.width), used.view(-1, leaves.width), strict=True)
        assert [row[kept].tolist() for row, kept in rows] == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@CAUSAL
def test_keys_that_are_not_finite_do_not_break_the_tree(bad: float, causal: bool) -> None:
    q, k, v = (x.detach() for x in draw())
    k[0, 0, 70:] = bad
    out = bucket_attention(q, k, v, SPEC, causal=causal, backend="cpu")
    clean = bucket_attention(q[1:], k[1:], v[1:], SPEC, causal=causal, backend="cpu")
    assert torch.equal(out[1:], clean)


@CAUSAL
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    q, k, v = draw()
    mask = torch.arange(150) < torch.tensor([[150], [97]])
    found = []
    for tiles in (1, 6, 1000):
        monkeypatch.setattr(tree_pass, "_TILES_AT_A_TIME", tiles)
        out = bucket_attention(q, k, v, SPEC, causal=causal, key_padding_mask=mask, backend="cpu")
        found.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@CAUSAL
def test_little_dropout_changes_gradients_little(causal: bool) -> None:
    q, k, v = draw()
    mask = torch.arange(150) < torch.tensor([[150], [97]])
    gradients = []
    for dropout_p in (0.0, 1e-9):
        out = bucket_attention(q, k, v, SPEC, causal=causal, key_padding_mask=mask, dropout_p=dropout_p, backend="cpu")
        gradients.append(torch.autograd.grad(out.square().sum(), (q, k, v)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_views_and_expanded_gradients() -> None:
    packed = torch.randn(2, 150, 3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    views = [x.transpose(1, 2) for x in packed.requires_grad_().unbind(2)]
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    (through_views,) = torch.autograd.grad(bucket_attention(*views, SPEC, backend="cpu").sum(), packed)
    through_copies = torch.autograd.grad(bucket_attention(*copies, SPEC, backend="cpu").sum(), copies)
    for found, expected in zip(through_views.unbind(2), through_copies, strict=True):
        assert torch.equal(found.transpose(1, 2), expected)


def test_only_inputs_and_means_are_kept() -> None:
    q, k, v = draw(1024, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        bucket_attention(q, k, v, SPEC, backend="cpu")
    inputs = {x.data_ptr() for x in (q, k, v)}
    extra = sum(x.numel() for x in kept if x.data_ptr() not in inputs)
    assert extra <= 2 * 2 / 8 * k.numel()  # keys' and values' means: at most two nodes for every bucket of 8


def test_a_second_derivative_is_refused() -> None:
    q, k, v = draw()
    out = bucket_attention(q, k, v, SPEC, backend="cpu")
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
