"""Groups of sequences: out of a packed batch and back into it, values and gradients, and once for all layers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sortyard.ops import BucketSpec, bucket_attention, dense_attention, make_segments
from sortyard.ops.bucket_attention import dense
from sortyard.ops.bucket_attention.dense import visible_pairs
from sortyard.ops.bucket_attention.groups import gather_groups, make_groups, scatter_groups
from sortyard.ops.segments import Segments

SPEC = BucketSpec(dense_up_to=16)
LENGTHS = (70, 9, 70, 30, 3, 12, 66, 15)


def packed() -> Segments:
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[0, 79:] = mask[2, 96:] = False
    starts = torch.tensor([0, 70, 100, 170, 200, 203, 215, 281, 300])
    return make_segments(3, 100, key_padding_mask=mask, cu_seqlens=starts, device="cpu")


def taken_by_index(x: Tensor, segments: Segments, number: int) -> Tensor:
    """The tokens of one sequence, [H, n, K]."""
    return x.transpose(1, 2).flatten(0, 1)[segments.ids.flatten() == number].transpose(0, 1)


def test_tokens_come_out_in_order_and_pads_are_zeros() -> None:
    segments = packed()
    assert segments.lengths == LENGTHS
    x = torch.randn(3, 2, 100, 4, dtype=torch.float64, requires_grad=True)
    groups = make_groups(segments, SPEC, causal=False, global_tokens=None)
    assert len(groups) > 2
    assert sorted(number for group in groups for number in group.sequences) == list(range(len(segments.lengths)))
    loss, expected = x.new_zeros(()), x.new_zeros(())
    for group, rows in zip(groups, gather_groups(x, groups), strict=True):
        assert rows.shape == (len(group.sequences), 2, group.length, 4)
        assert not rows.transpose(1, 2)[~group.real].any()
        for row, number, length in zip(rows, group.sequences, group.lengths, strict=True):
            own = taken_by_index(x, segments, number)
            assert torch.equal(row[:, :length], own)
            loss, expected = loss + (number + row).square().sum(), expected + (number + own).square().sum()
            expected = expected + number**2 * row[:, length:].numel()
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0].transpose(1, 2)[segments.ids < 0].any()


def test_a_batch_that_is_taken_apart_and_put_together_is_the_same() -> None:
    segments = packed()
    x = torch.randn(3, 2, 100, 4, dtype=torch.float64, requires_grad=True)
    groups = make_groups(segments, SPEC, causal=False, global_tokens=None)
    whole = scatter_groups(list(zip(groups, gather_groups(x, groups), strict=True)), like=x)
    real = (segments.ids >= 0)[:, None, :, None]
    assert torch.equal(whole, x * real)
    (gradient,) = torch.autograd.grad((whole * whole.detach().cos()).sum(), x)
    torch.testing.assert_close(gradient, x.detach().cos() * real)


def test_layers_of_the_same_settings_share_the_groups() -> None:
    segments = packed()
    first = make_groups(segments, SPEC, causal=False, global_tokens=None)
    assert make_groups(segments, BucketSpec(dense_up_to=16), causal=False, global_tokens=None) is first
    assert make_groups(segments, SPEC, causal=True, global_tokens=None) is not first
    assert make_groups(segments, BucketSpec(dense_up_to=0), causal=False, global_tokens=None) is not first
    marked = torch.zeros(3, 100, dtype=torch.bool)
    marked[0, 5] = True
    found = make_groups(segments, SPEC, causal=False, global_tokens=marked)
    assert [group.globals_at.shape[1] for group in found] != [group.globals_at.shape[1] for group in first]
    assert make_groups(segments, SPEC, causal=False, global_tokens=None) is first


def test_a_group_is_a_batch_of_its_own() -> None:
    for group in make_groups(packed(), SPEC, causal=False, global_tokens=None):
        expected = make_segments(*group.real.shape, key_padding_mask=group.real, device="cpu")
        for name in ("counts", "token_index", "ids", "positions"):
            assert torch.equal(getattr(group.segments, name), getattr(expected, name)), name
        assert (group.segments.lengths, group.segments.is_trivial) == (expected.lengths, expected.is_trivial)


def long_rows(*, padding: int) -> Segments:
    """Rows of 600 positions with short sequences in them, or a long one that leaves little to save."""
    mask = torch.ones(2, 600, dtype=torch.bool)
    mask[1, 600 - padding :] = False
    starts = torch.tensor([0, 130, 140, 330, 400, 600, 700, 990, 1200])
    return make_segments(2, 600, key_padding_mask=mask, cu_seqlens=starts, device="cpu")


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_dense_attention_takes_short_sequences_out_of_long_rows(causal: bool) -> None:
    segments = long_rows(padding=50)
    x = torch.randn(3, 2, 2, 600, 8, dtype=torch.float64, requires_grad=True)
    mask = visible_pairs(segments, causal=causal)[:, None]
    pads = (segments.ids < 0)[:, None, :, None]
    expected = F.scaled_dot_product_attention(*x, attn_mask=mask | pads).masked_fill(pads, 0.0)
    of_dense = dense_attention(*x, segments=segments, causal=causal)
    of_buckets = bucket_attention(*x, BucketSpec(dense_up_to=1000), segments=segments, causal=causal)
    assert len(segments.kept) == 1  # they share the groups
    (wanted,) = torch.autograd.grad((expected * x[0]).sum(), x)
    for found in (of_dense, of_buckets):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * x[0]).sum(), x)[0], wanted)


def test_dense_attention_leaves_rows_whole_where_that_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 2, 2, 600, 8)
    whole = make_segments(2, 600, cu_seqlens=torch.tensor([0, 500, 600, 1150, 1200]), device="cpu")
    dense_attention(*x, segments=whole)
    short = long_rows(padding=50)
    dense_attention(*x, segments=short, window=4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # a graph of one batch's lengths is of no use
    dense_attention(*x, segments=short)
    assert not whole.kept
    assert not short.kept


@pytest.mark.parametrize(("rows", "pays"), [(1, False), (2, True)])
def test_on_a_gpu_sequences_are_taken_out_of_large_batches_only(rows: int, pays: bool) -> None:
    segments = make_segments(rows, 8192, cu_seqlens=torch.arange(0, rows * 8192 + 1, 128), device="cpu")
    assert dense._pays_by_groups(segments)
    there = replace(segments, token_index=torch.empty_like(segments.token_index, device="meta"))  # for a GPU
    assert dense._pays_by_groups(there) == pays


class _Asked(TorchDispatchMode):
    """Which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, _: Any, words: Any = (), named: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*words, **(named or {}))


def test_no_operator_brings_facts_to_the_host_or_adds_rows() -> None:
    """On a GPU such operators stop the host, or add to one row many times, one after another."""
    segments = packed()
    x = torch.randn(3, 2, 100, 4, requires_grad=True)
    with _Asked() as asked:
        groups = make_groups(segments, SPEC, causal=False, global_tokens=None)
        parts = gather_groups(x, groups)
        attended = [
            dense_attention(part, part, part, segments=group.segments)
            for group, part in zip(groups, parts, strict=True)
        ]
        scatter_groups(list(zip(groups, attended, strict=True)), like=x).square().sum().backward()
    assert "index_copy" in asked.names
    stopping = {"nonzero", "_local_scalar_dense", "masked_select", "bincount"}
    assert not asked.names & (stopping | {"index_put", "index_put_", "_index_put_impl_", "index_add", "index_add_"})
