"""The fused experts: every activation, every subset of gradients, awkward slots, compilation."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import ACTIVATIONS, grouped_mlp
from sortyard.ops.grouped_mlp.fused import operator
from sortyard.ops.grouped_mlp.fused.batches import max_rows, sort_batches

N, D, F, E, K = 37, 10, 7, 5, 2


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) / 2


def operands(*, gated: bool, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    width = 2 * F if gated else F
    shapes = {"up": (E, width, D), "down": (E, D, F), "up_bias": (E, width), "down_bias": (E, D)}
    return {name: draw(*shape, seed=seed, dtype=dtype) for seed, (name, shape) in enumerate(shapes.items())}


def routing_of(experts: Tensor, weights: Tensor) -> Routing:
    loads = torch.bincount(experts.flatten(), minlength=E + 1)[:E].float()
    return Routing(experts, weights, torch.zeros(len(experts), E), loads, len(experts))


def choices() -> Tensor:
    return torch.rand(N, E, generator=torch.Generator().manual_seed(5)).topk(K).indices


def gradients(backend: str, experts: Tensor, *, activation: str = "gelu", gated: bool, **given: Tensor) -> list[Tensor]:
    leaves = {"x": draw(N, D, seed=8), "weights": draw(N, K, seed=9), **operands(gated=gated), **given}
    for leaf in leaves.values():
        leaf.requires_grad_()
    routing = routing_of(experts, leaves["weights"])
    nets = {name: leaf for name, leaf in leaves.items() if name not in ("x", "weights")}
    out = grouped_mlp(leaves["x"], routing, **nets, activation=activation, gated=gated, backend=backend)
    out.backward(draw(N, D, seed=10))
    return [out.detach(), *(leaf.grad for leaf in leaves.values())]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_every_activation_has_the_references_values_and_gradients(activation, gated):
    found = gradients("fused", choices(), activation=activation, gated=gated)
    truth = gradients("reference", choices(), activation=activation, gated=gated)
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10)


def test_slots_of_nobody_are_left_out_one_by_one():
    experts = choices()
    experts[::3, 1] = E
    experts[5] = E
    found, truth = gradients("fused", experts, gated=True), gradients("reference", experts, gated=True)
    for mine, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10)
    assert (found[0][5] == 0).all()
    assert (found[2][::3, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_nothing_is_read_before_it_is_written(dtype):
    """Idle experts, padding rows of rounded runs and nobody's slots, with NaN in all fresh memory."""
    experts = torch.where(choices() == 1, E, choices())
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        x, nets = draw(N, D, dtype=dtype).requires_grad_(), operands(gated=True, dtype=dtype)
        for leaf in nets.values():
            leaf.requires_grad_()
        weights = draw(N, K, dtype=dtype).requires_grad_()
        out = grouped_mlp(x, routing_of(experts, weights), **nets, gated=True, backend="fused")
        out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in (x, weights, *nets.values()))
    assert (nets["up"].grad[1] == 0).all()


@pytest.mark.parametrize("name", ["x", "weights", "up", "down", "up_bias", "down_bias"])
def test_one_gradient_alone_is_the_same_as_among_all(name):
    every = dict(
        zip(["out", "x", "weights", *operands(gated=False)], gradients("fused", choices(), gated=False), strict=True)
    )
    leaves = {"x": draw(N, D, seed=8), "weights": draw(N, K, seed=9), **operands(gated=False)}
    leaves[name].requires_grad_()
    nets = {key: leaf for key, leaf in leaves.items() if key not in ("x", "weights")}
    out = grouped_mlp(leaves["x"], routing_of(choices(), leaves["weights"]), **nets, backend="fused")
    out.backward(draw(N, D, seed=10))
    torch.testing.assert_close(leaves[name].grad, every[name], atol=1e-13, rtol=0)
    assert [key for key, leaf in leaves.items() if leaf.grad is not None] == [name]


def test_gradients_without_memory_of_their_own_are_read_rightly():
    x = draw(N, D).requires_grad_()
    nets = operands(gated=False)
    routing = routing_of(choices(), draw(N, K))
    (expanded,) = torch.autograd.grad(grouped_mlp(x, routing, **nets).sum(), x)
    (whole,) = torch.autograd.grad(grouped_mlp(x, routing, **nets), x, torch.ones(N, D, dtype=torch.float64))
    assert torch.equal(expanded, whole)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_float32_matrices_under_bfloat16_give_the_float32_gradients_of_cast_ones(bias):
    """Casting one expert's matrices when their turn comes is casting all of them before."""
    experts, weights = choices(), draw(N, K, seed=9, dtype=torch.float32).requires_grad_()
    nets = operands(gated=True, dtype=torch.float32)
    nets = {name: leaf.requires_grad_() for name, leaf in nets.items() if bias or "bias" not in name}
    x = draw(N, D, seed=8, dtype=torch.float32).requires_grad_()
    leaves = [x, weights, *nets.values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = grouped_mlp(x, routing_of(experts, weights), **nets, gated=True, backend="fused")
    cast = {name: leaf.bfloat16() for name, leaf in nets.items()}
    whole = grouped_mlp(x.bfloat16(), routing_of(experts, weights), **cast, gated=True, backend="fused")
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, whole)
    grad = draw(N, D, seed=10, dtype=torch.bfloat16)
    found, expected = torch.autograd.grad(mixed, leaves, grad), torch.autograd.grad(whole, leaves, grad)
    assert all(gradient.dtype == torch.float32 for gradient in found)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=2**-8)


def test_no_tokens_at_all():
    x, nets = torch.empty(0, D, dtype=torch.float64).requires_grad_(), operands(gated=True)
    for leaf in nets.values():
        leaf.requires_grad_()
    routing = routing_of(torch.empty(0, K, dtype=torch.long), torch.empty(0, K, dtype=torch.float64))
    grouped_mlp(x, routing, **nets, gated=True, backend="fused").sum().backward()
    assert x.grad.shape == (0, D)
    assert all((leaf.grad == 0).all() for leaf in nets.values())


def test_autocast_around_backward_alone_changes_nothing():
    x, nets = draw(N, D, dtype=torch.float32).requires_grad_(), operands(gated=True, dtype=torch.float32)
    weights = draw(N, K, seed=9, dtype=torch.float32).requires_grad_()
    leaves = [x, weights, *(leaf.requires_grad_() for leaf in nets.values())]
    out = grouped_mlp(x, routing_of(choices(), weights), **nets, gated=True, backend="fused")
    grad = draw(N, D, seed=10, dtype=torch.float32)
    outside = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(out, leaves, grad)
    assert all(torch.equal(one, other) for one, other in zip(outside, inside, strict=True))


def test_a_second_derivative_is_refused():
    x = draw(N, D).requires_grad_()
    out = grouped_mlp(x, routing_of(choices(), draw(N, K)), **operands(gated=False), backend="fused")
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_operators_are_sound(dtype):
    """What forward keeps has rows that nobody writes, so its values cannot be compared with those of a traced call,
    which `compiled_experts` does by the results.
    """
    x, nets = draw(N, D, dtype=dtype).requires_grad_(), operands(gated=True, dtype=dtype)
    for leaf in nets.values():
        leaf.requires_grad_()
    weights = draw(N, K, dtype=dtype).requires_grad_()
    options = ("silu", True)
    kept_rows = max_rows(choices().numel(), num_experts=E)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        operator.expert_mlp, (x, choices(), weights, *nets.values(), *options, kept_rows), test_utils=checks
    )
    _, kept = operator.expert_mlp(x, choices(), weights, *nets.values(), *options, kept_rows)
    with torch.no_grad():
        parts = (x, choices(), weights, kept, *nets.values())
        arguments = (draw(N, D, dtype=dtype), *(part.detach() for part in parts), *options, [True] * 6)
        torch.library.opcheck(operator.expert_mlp_backward, arguments)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("skew", [0.0, 1.0, 4.0], ids=lambda skew: f"skew{skew:.0f}")
def test_batches_cover_every_slot_once_within_the_bound(rounded, skew):
    generator, num_experts = torch.Generator().manual_seed(0), 13
    for num_tokens in (0, 1, 40, 3000):
        drawn = torch.rand(num_tokens, K, generator=generator) ** (1 + skew) * (num_experts + 2)
        experts = drawn.long().clamp(max=num_experts)
        order = sort_batches(experts, num_experts=num_experts, rounded=rounded, alone_from=1000)
        assert order.num_rows <= max_rows(experts.numel(), num_experts=num_experts)
        assert [number for batch in order.batches for number in range(num_experts)[batch.experts]] == [
            *range(num_experts)
        ]
        owner = torch.full((order.num_rows + 1,), num_experts)
        for batch in order.batches:
            assert batch.num_rows == batch.num_experts * batch.size
            for index, number in enumerate(range(num_experts)[batch.experts]):
                owner[batch.rows][index * batch.size : (index + 1) * batch.size] = number
        assert torch.equal(owner[order.places], experts)
        padding = torch.ones(order.num_rows + 1, dtype=torch.bool)
        padding[order.places] = False
        assert (order.tokens == num_tokens)[padding[:-1]].all()
        slots = order.places < order.num_rows
        assert torch.equal(order.tokens[order.places[slots]], torch.arange(num_tokens)[:, None].expand(-1, K)[slots])
        assert order.places[slots].unique().numel() == slots.sum()


def batches_of(experts: Tensor) -> list[tuple[int, int, int]]:
    """First expert, number of experts and rows of each, of every batch."""
    order = sort_batches(experts[:, None], num_experts=64, rounded=False, alone_from=1000)
    return [(batch.experts.start, batch.num_experts, batch.size) for batch in order.batches]


def test_even_experts_and_little_work_are_one_batch_and_a_crowded_expert_is_alone():
    even = torch.arange(64).repeat(32)
    assert batches_of(even) == [(0, 64, 32)]
    assert batches_of(torch.tensor([3, 3, 40])) == [(0, 64, 2)]
    crowded = torch.cat([even, torch.full((5000,), 7)])
    assert [batch for batch in batches_of(crowded) if batch[2] > 32] == [(7, 1, 5032)]


def test_rounded_batches_have_few_sizes():
    sizes = set()
    for count in range(1, 2049):
        experts = torch.zeros(count, 1, dtype=torch.long)
        sizes.add(sort_batches(experts, num_experts=1, rounded=True, alone_from=1000).batches[0].size)
    assert len(sizes) <= 100


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_layers_and_calls_of_any_length_compile_into_one_graph(backend):
    """In a process of its own: the shape checks of the tests would break the graph."""
    script = Path(__file__).with_name("compiled_experts.py")
    command = [sys.executable, str(script), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
