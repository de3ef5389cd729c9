"""Selection: groups, experts, bias, weights and padding."""

import pytest
import torch

from sortyard.ops.expert_dispatch import route
from sortyard.ops.expert_dispatch.reference import choose_experts


def scores_of(num_tokens: int, num_experts: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("num_experts", "groups", "open_groups", "chosen"),
    [(8, 1, 1, 2), (8, 4, 2, 2), (8, 4, 2, 4), (8, 8, 3, 3), (16, 4, 1, 4), (12, 3, 3, 6), (1, 1, 1, 1)],
)
def test_choice_equals_the_reference(num_experts, groups, open_groups, chosen):
    counts = {"num_groups": groups, "num_groups_per_tok": open_groups, "num_experts_per_tok": chosen}
    scores, bias = scores_of(40, num_experts), scores_of(1, num_experts, seed=1)[0]
    routing = route(scores, selection_bias=bias, **counts)
    for row, experts in zip((scores + bias).tolist(), routing.experts.tolist(), strict=True):
        assert len(set(experts)) == chosen
        assert set(experts) == choose_experts(row, **counts)


def test_bias_moves_the_choice_and_never_the_weights():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    routing = route(
        scores,
        num_groups=1,
        num_groups_per_tok=1,
        num_experts_per_tok=2,
        selection_bias=torch.tensor([-1.0, 0.5, 0.0, 0.0]),
    )
    assert set(routing.experts[0].tolist()) == {1, 3}
    torch.testing.assert_close(routing.weights.sort(descending=True).values, torch.tensor([[0.8, 0.2]]))


def test_weights_add_up_and_their_gradient_reaches_the_scores():
    scores = scores_of(10, 8).requires_grad_()
    routing = route(scores, num_groups=4, num_groups_per_tok=2, num_experts_per_tok=2)
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(10, dtype=torch.float64))
    routing.weights[:, 0].sum().backward()
    assert (scores.grad.abs() > 0).sum() == 20


def test_straight_through_weights_are_one_with_the_gradient_of_the_scores():
    scores = scores_of(10, 8).requires_grad_()
    routing = route(scores, num_groups=4, num_groups_per_tok=4, num_experts_per_tok=4, weights="straight_through")
    torch.testing.assert_close(routing.weights, torch.ones(10, 4, dtype=torch.float64), rtol=0, atol=1e-15)
    routing.weights.sum().backward()
    expected = torch.zeros(10, 8, dtype=torch.float64).scatter(1, routing.experts, 1.0)
    torch.testing.assert_close(scores.grad, expected)


def test_given_group_scores_choose_the_groups_and_learn():
    scores, groups = scores_of(6, 8), torch.rand(6, 4, dtype=torch.float64).requires_grad_()
    routing = route(scores, num_groups=4, num_groups_per_tok=2, num_experts_per_tok=2, group_scores=groups)
    best = groups.topk(2).indices.sort().values
    assert torch.equal((routing.experts // 2).sort().values, best)
    routing.weights[:, 0].sum().backward()
    assert (groups.grad.abs() > 0).sum() == 12


def test_padding_is_routed_nowhere():
    mask = torch.tensor([True, False, True, False])
    routing = route(scores_of(4, 8), num_groups=4, num_groups_per_tok=2, num_experts_per_tok=2, mask=mask)
    assert (routing.experts[~mask] == 8).all()
    assert (routing.weights[~mask] == 0).all()
    assert routing.num_tokens == 2
    assert routing.loads.sum() == 4
    torch.testing.assert_close(routing.fractions.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_few_tokens(num_tokens):
    routing = route(scores_of(num_tokens, 8), num_groups=4, num_groups_per_tok=2, num_experts_per_tok=2)
    assert routing.experts.shape == (num_tokens, 2)
    assert routing.loads.sum() == 2 * num_tokens
    assert routing.fractions.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 3}, "num_groups=3 does not divide"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"num_groups_per_tok": 5}, "choose 1 to 4"),
        ({"num_experts_per_tok": 3}, "multiple of 2 up to 4"),
        ({"num_experts_per_tok": 6}, "multiple of 2 up to 4"),
        ({"weights": "softmax"}, "choose one of normalized, straight_through"),
    ],
)
def test_counts_that_do_not_fit_are_refused(change, message):
    counts = {"num_groups": 4, "num_groups_per_tok": 2, "num_experts_per_tok": 2}
    with pytest.raises(ValueError, match=message):
        route(scores_of(4, 8), **{**counts, **change})
