"""Redundancy, co-activation and saturation against cases worked out by hand."""

import itertools

import pytest
import torch
from torch import nn

from sortyard.evaluation.routing_choices import (
    ExpertPair,
    co_activation_counts,
    frequent_pairs,
    redundancy,
    saturation,
)


def test_redundancy_of_copies_opposites_and_strangers() -> None:
    x = torch.randn(1, 20, 5)
    assert redundancy(x.expand(4, -1, -1)) == pytest.approx(1)
    assert redundancy(torch.cat([x, -x])) == pytest.approx(-1)
    assert redundancy(torch.eye(4)[:, None]) == pytest.approx(0)
    assert redundancy(torch.zeros(2, 3, 4)) == 0


def test_redundancy_is_the_mean_over_all_pairs() -> None:
    outputs = torch.randn(3, 7, 5)
    cosines = [nn.functional.cosine_similarity(a, b, dim=-1).mean() for a, b in itertools.combinations(outputs, 2)]
    assert redundancy(outputs) == pytest.approx(float(sum(cosines)) / 3, abs=1e-6)
    with pytest.raises(ValueError, match="two experts"):
        redundancy(torch.randn(1, 3, 4))


def test_shared_tokens_are_counted() -> None:
    experts = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 3]])
    counts = co_activation_counts(experts, num_experts=5)
    expected = torch.tensor([[3, 2, 1, 0, 0], [2, 2, 0, 0, 0], [1, 0, 2, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(counts, expected)
    pairs = frequent_pairs(counts, limit=3)
    assert pairs[:2] == (ExpertPair(1, 0, 1.0, 2), ExpertPair(3, 2, 1.0, 1))
    assert pairs[2] == (0, 1, pytest.approx(2 / 3), 2)


def test_tokens_with_one_expert_share_none() -> None:
    counts = co_activation_counts(torch.tensor([[0], [1], [1]]), num_experts=2)
    assert frequent_pairs(counts, limit=4) == ()


def test_saturation_counts_equal_experts_whatever_their_order() -> None:
    final = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    assert saturation(final, final) == 1
    assert saturation(final.flip(-1), final) == 1
    earlier = torch.tensor([[1, 0], [3, 9], [8, 9], [7, 8]])  # 2 + 1 + 0 + 1 of 8
    assert saturation(earlier, final) == pytest.approx(0.5)


def test_independent_choices_agree_on_k_of_e() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(20_000, 8, generator=generator).topk(2).indices for _ in range(2))
    assert saturation(first, second) == pytest.approx(2 / 8, abs=0.01)


def test_saturation_of_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        saturation(torch.zeros(3, 2, dtype=torch.long), torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="same tokens"):
        saturation(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long))
