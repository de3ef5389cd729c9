"""Dispatch for any routing: nothing is lost, nothing is invented, order does not matter."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sortyard.ops.expert_dispatch import Routing, combine, dispatch, route, sort_copies
from sortyard.ops.expert_dispatch.reference import gather_copies
from sortyard.ops.grouped_mlp import grouped_mlp


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    num_groups = draw(st.integers(1, 4))
    size = draw(st.integers(1, 4))
    open_groups = draw(st.integers(1, num_groups))
    chosen = open_groups * draw(st.integers(1, size))
    num_tokens = draw(st.integers(0, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scores = torch.rand(num_tokens, num_groups * size, generator=generator, dtype=torch.float64) + 0.01
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    mask = torch.rand(num_tokens, generator=generator) < share if draw(st.booleans()) else None
    return route(scores, num_groups=num_groups, num_groups_per_tok=open_groups, num_experts_per_tok=chosen, mask=mask)


@settings(max_examples=80, deadline=None)
@given(routings())
def test_dispatch_then_combine_is_the_identity_on_real_tokens(routing):
    x = torch.randn(len(routing.experts), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = sort_copies(routing)
    home = combine(dispatch(x, order), order, weights=routing.weights)
    real = routing.experts[:, :1] < len(routing.loads)
    torch.testing.assert_close(home, torch.where(real, x, torch.zeros_like(x)), atol=1e-12, rtol=0)


@settings(max_examples=80, deadline=None)
@given(routings())
def test_counts_are_conserved_and_the_order_is_the_references(routing):
    num_experts, per_token = len(routing.loads), routing.experts.shape[1]
    order = sort_copies(routing)
    assert routing.loads.sum() == routing.num_tokens * per_token
    assert torch.equal(order.ends.diff(prepend=order.ends.new_zeros(1)).float(), routing.loads)
    copies = list(zip(order.experts.tolist(), order.tokens.tolist(), strict=True))
    assert copies == gather_copies(routing.experts.tolist(), num_experts=num_experts)


@settings(max_examples=40, deadline=None)
@given(routings(), st.integers(0, 2**31 - 1))
def test_permuted_tokens_give_permuted_outputs(routing, seed):
    generator = torch.Generator().manual_seed(seed)
    num_tokens, num_experts = routing.scores.shape

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, up, down = draw(num_tokens, 3), draw(num_experts, 5, 3), draw(num_experts, 3, 5)
    order = torch.randperm(num_tokens, generator=generator)
    moved = Routing(
        routing.experts[order], routing.weights[order], routing.scores[order], routing.loads, routing.num_tokens
    )
    out = grouped_mlp(x, routing, up=up, down=down)
    torch.testing.assert_close(grouped_mlp(x[order], moved, up=up, down=down), out[order], atol=1e-12, rtol=1e-12)
