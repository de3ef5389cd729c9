"""Contexts: what they average, and what they must not see."""

import pytest
import torch

from sortyard.model.experts.context import make_context
from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.scan import BLOCK, segment_scan
from sortyard.ops.segments import make_segments

CAUSAL = ["running_mean", "ema"]
CLEAN = ["mean", *CAUSAL]


def build(name: str):
    return make_context(ExpertOptions(context=name, ema_decay=0.8))


def states(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_context(name: str, sequence: torch.Tensor) -> torch.Tensor:
    """The definition for one sequence [T, D], token by token."""
    if name == "mean":
        return sequence.mean(0, keepdim=True).expand_as(sequence)
    if name == "running_mean":
        return torch.stack([sequence[: t + 1].mean(0) for t in range(len(sequence))])
    total, norm, found = torch.zeros_like(sequence[0]), 0.0, []
    for state in sequence:
        total, norm = 0.8 * total + state, 0.8 * norm + 1
        found.append(total / norm)
    return torch.stack(found)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 100, BLOCK * BLOCK + 40])
@pytest.mark.parametrize("name", CLEAN)
def test_context_equals_its_definition(name, length):
    hidden = states(2, length)
    found = build(name)(hidden, make_segments(2, length, device="cpu"))
    expected = torch.stack([expected_context(name, row) for row in hidden])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("decay", [0.5, 0.999, 1.0])
def test_scan_equals_the_recurrence_over_packed_sequences(decay):
    lengths = [1, 70, 3, 33, 500, 2]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    values = states(1, len(ids))[0]
    found = segment_scan(values, ids=ids, positions=positions, decay=decay)
    state = torch.zeros(5, dtype=torch.float64)
    for t, value in enumerate(values):
        state = value + (decay * state if positions[t] > 0 else 0)
        torch.testing.assert_close(found[t], state, atol=1e-11, rtol=0)


def test_scan_has_exact_gradients():
    values = states(1, BLOCK + 9)[0][:, :2].clone().requires_grad_()
    ids, positions = torch.zeros(len(values), dtype=torch.long), torch.arange(len(values))
    assert torch.autograd.gradcheck(lambda v: segment_scan(v, ids=ids, positions=positions, decay=0.9), values)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_never_changes_the_past(name):
    hidden, segments = states(2, 150).float(), make_segments(2, 150, device="cpu")
    edited = hidden.clone()
    edited[:, 77:] = 100 * torch.randn(2, 73, 5)
    before, after = build(name)(hidden, segments), build(name)(edited, segments)
    assert torch.equal(before[:, :77], after[:, :77])
    assert not torch.equal(before[:, 77:], after[:, 77:])


@pytest.mark.parametrize("name", CLEAN)
def test_padding_is_never_counted(name, rows):
    hidden = states(2, 60)
    alone = build(name)(hidden[:1, :41], make_segments(1, 41, device="cpu"))
    hidden[0, 41:] = float("nan")
    found = build(name)(hidden, rows(41, 60, length=60))
    torch.testing.assert_close(found[:1, :41], alone, atol=1e-12, rtol=0)
    assert (found[0, 41:] == 0).all()


@pytest.mark.parametrize("name", CLEAN)
def test_padding_in_the_middle_is_skipped(name):
    hidden, keep = states(1, 9), torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1, 0]]).bool()
    found = build(name)(hidden, make_segments(1, 9, key_padding_mask=keep, device="cpu"))
    torch.testing.assert_close(found[keep], expected_context(name, hidden[keep]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CLEAN)
def test_packed_sequences_do_not_meet(name):
    hidden = states(1, 80)
    boundaries = torch.tensor([0, 13, 14, 70])
    found = build(name)(hidden, make_segments(1, 80, cu_seqlens=boundaries, device="cpu"))
    for start, end in [(0, 13), (13, 14), (14, 70)]:
        expected = expected_context(name, hidden[0, start:end])
        torch.testing.assert_close(found[0, start:end], expected, atol=1e-12, rtol=0)
    assert (found[0, 70:] == 0).all()


def test_shuffled_is_the_next_sequences_mean(rows):
    hidden = states(3, 12)
    found = build("shuffled")(hidden, rows(12, 5, 8, length=12))
    torch.testing.assert_close(found[0, 0], hidden[1, :5].mean(0))
    torch.testing.assert_close(found[2, 7], hidden[0].mean(0))
    assert (build("shuffled")(hidden[:1], make_segments(1, 12, device="cpu")) == 0).all()


def test_context_is_float32_for_bfloat16_states():
    segments = make_segments(1, 40, device="cpu")
    for name in CLEAN:
        assert build(name)(states(1, 40).bfloat16(), segments).dtype == torch.float32


def test_no_context():
    assert build("none")(states(1, 4), make_segments(1, 4, device="cpu")) is None
