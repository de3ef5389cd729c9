"""Balance losses: zero when even, formulas, gradients, padding."""

import pytest
import torch

from sortyard.model.experts.balance import balance_loss, summed_shares
from sortyard.ops.expert_dispatch import Routing, route

N = 8


def routing_of(scores: torch.Tensor, mask: torch.Tensor | None = None) -> Routing:
    return route(scores, num_groups=1, num_groups_per_tok=1, num_experts_per_tok=2, mask=mask)


def even_routing() -> Routing:
    experts = torch.arange(2 * N).view(N, 2) % N
    scores = torch.full((N, N), 0.5).requires_grad_()
    return Routing(experts, torch.full((N, 2), 0.5), scores, torch.full((N,), 2.0), N)


def skewed_scores() -> torch.Tensor:
    scores = torch.rand(50, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    scores[:, 0] += 0.5
    return scores.requires_grad_()


@pytest.mark.parametrize(("form", "value"), [("default", 0.0), ("literal", 0.0), ("switch", 0.01), ("none", 0.0)])
def test_value_when_even(form, value):
    loss = balance_loss(even_routing(), form=form, coef=0.01)
    torch.testing.assert_close(loss, torch.tensor(value), atol=1e-9, rtol=0)


def test_default_form_is_worth_the_unevenness_of_the_loads():
    routing = routing_of(skewed_scores())
    expected = 0.01 * N * (routing.fractions.double() - 1 / N).square().sum()
    torch.testing.assert_close(balance_loss(routing, form="default", coef=0.01), expected)


def test_literal_form_is_the_published_formula():
    routing = routing_of(skewed_scores())
    mean = (routing.scores / routing.scores.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(balance_loss(routing, form="literal", coef=0.01), 0.01 * (mean - 1 / N).square().sum())


def test_switch_form():
    routing = routing_of(skewed_scores())
    expected = 0.01 * N * (routing.fractions.double() * summed_shares(routing) / routing.num_tokens).sum()
    torch.testing.assert_close(balance_loss(routing, form="switch", coef=0.01), expected)


@pytest.mark.parametrize("form", ["default", "switch"])
def test_gradient_pushes_an_overloaded_expert_down(form):
    scores = skewed_scores()
    balance_loss(routing_of(scores), form=form, coef=0.01).backward()
    assert (scores.grad[:, 0] > 0).all()
    assert scores.grad[:, 1:].sum() < 0


def test_default_gradient_is_larger_than_the_literal_one_by_orders():
    sizes = {}
    for form in ("default", "literal"):
        scores = skewed_scores()
        balance_loss(routing_of(scores), form=form, coef=0.01).backward()
        sizes[form] = scores.grad.abs().max()
    assert sizes["default"] > 10 * sizes["literal"]


@pytest.mark.parametrize("form", ["default", "literal", "switch"])
def test_padding_is_excluded(form):
    scores = skewed_scores().detach()
    padded = torch.cat([scores, torch.full((30, N), 0.9, dtype=torch.float64)])
    mask = torch.arange(80) < 50
    loss = balance_loss(routing_of(padded, mask), form=form, coef=1.0)
    torch.testing.assert_close(loss, balance_loss(routing_of(scores), form=form, coef=1.0))


@pytest.mark.parametrize("form", ["default", "literal", "switch", "none"])
def test_nothing_routed_costs_nothing(form):
    routing = routing_of(skewed_scores(), torch.zeros(50, dtype=torch.bool))
    assert balance_loss(routing, form=form, coef=0.01) == 0


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="choose one of default"):
        balance_loss(even_routing(), form="importance", coef=0.01)
