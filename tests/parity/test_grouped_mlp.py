"""Every backend of grouped_mlp against the masked reference, values and gradients."""

import sys

import pytest
import torch
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing, route
from sortyard.ops.grouped_mlp import choose_backend, grouped_mlp
from sortyard.ops.grouped_mlp import sorted as sorted_backend

FAST = ["fused", "grouped"]
D, F, E, K = 16, 24, 6, 2


def count(experts: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=num_experts + 1)[:num_experts].float()


def make_routing(experts: Tensor, weights: Tensor) -> Routing:
    real = int((experts[:, 0] < E).sum())
    scores = torch.full((len(experts), E), 0.5, dtype=weights.dtype)
    return Routing(experts, weights, scores, count(experts, E), real)


def random_routing(num_tokens: int, *, dtype: torch.dtype, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, E, generator=generator, dtype=dtype)
    return route(scores, num_groups=3, num_groups_per_tok=2, num_experts_per_tok=K)


def one_expert(num_tokens: int, *, dtype: torch.dtype) -> Routing:
    return make_routing(torch.full((num_tokens, 1), 3), torch.ones(num_tokens, 1, dtype=dtype))


def half_padding(num_tokens: int, *, dtype: torch.dtype) -> Routing:
    whole = random_routing(num_tokens, dtype=dtype)
    pad = torch.arange(num_tokens)[:, None] % 2 == 1
    return make_routing(whole.experts.masked_fill(pad, E), whole.weights.masked_fill(pad, 0.0))


def all_padding(num_tokens: int, *, dtype: torch.dtype) -> Routing:
    return make_routing(torch.full((num_tokens, K), E), torch.zeros(num_tokens, K, dtype=dtype))


def empty_expert(num_tokens: int, *, dtype: torch.dtype) -> Routing:
    whole = random_routing(num_tokens, dtype=dtype)
    return make_routing(whole.experts.clamp(max=3), whole.weights)


ROUTINGS = [random_routing, one_expert, half_padding, all_padding, empty_expert]


def run(backend: str, routing: Routing, *, dtype: torch.dtype, gated: bool, bias: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) / 4).to(dtype).requires_grad_()

    width = 2 * F if gated else F
    num_tokens = len(routing.experts)
    x, up, down = draw(num_tokens, D), draw(E, width, D), draw(E, D, F)
    biases = [draw(E, width), draw(E, D)] if bias else []
    weights = routing.weights.detach().requires_grad_()
    routing = Routing(routing.experts, weights, routing.scores, routing.loads, routing.num_tokens)
    out = grouped_mlp(
        x,
        routing,
        up=up,
        down=down,
        up_bias=biases[0] if bias else None,
        down_bias=biases[1] if bias else None,
        gated=gated,
        backend=backend,
    )
    out.backward(draw(num_tokens, D).detach())
    leaves = [x, up, down, *biases, weights]
    return [out.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_near(found: list[Tensor], expected: list[Tensor], *, tolerance: float) -> None:
    for mine, truth in zip(found, expected, strict=True):
        scale = truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(mine.double(), truth.double(), atol=tolerance * max(scale, 1e-3), rtol=0)


@pytest.mark.parametrize("num_tokens", [0, 1, 63, 100])
@pytest.mark.parametrize("make", ROUTINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("gated", "bias"), [(False, False), (True, True)], ids=["plain", "gated-bias"])
def test_fused_equals_reference_in_float64(make, num_tokens, gated, bias):
    """In float64, where nothing is lost to rounding; torch's grouped kernel does not multiply it."""
    routing = make(num_tokens, dtype=torch.float64)
    options = {"dtype": torch.float64, "gated": gated, "bias": bias}
    assert_near(run("fused", routing, **options), run("reference", routing, **options), tolerance=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_tokens", [0, 1, 63, 100])
@pytest.mark.parametrize("make", ROUTINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False)], ids=["bias", "gated"])
def test_backends_equal_reference_in_float32(backend, make, num_tokens, gated, bias):
    routing = make(num_tokens, dtype=torch.float32)
    options = {"dtype": torch.float32, "gated": gated, "bias": bias}
    assert_near(run(backend, routing, **options), run("reference", routing, **options), tolerance=2e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [random_routing, half_padding, empty_expert], ids=lambda make: make.__name__)
def test_short_floats_err_no_more_than_twice_their_twin(backend, make, dtype):
    options = {"gated": True, "bias": True}
    truth = run("reference", make(100, dtype=torch.float64), dtype=torch.float64, **options)
    routing = make(100, dtype=torch.float64)
    twin = run("reference", routing, dtype=dtype, **options)
    mine = run(backend, routing, dtype=dtype, **options)
    for ours, theirs, exact in zip(mine, twin, truth, strict=True):
        error, allowed = (ours.double() - exact).abs().max(), (theirs.double() - exact).abs().max()
        assert error <= 2 * allowed + 1e-5


def test_a_changed_routing_changes_the_result():
    routing = random_routing(100, dtype=torch.float64)
    out = run("reference", routing, dtype=torch.float64, gated=False, bias=False)[0]
    moved = Routing(routing.experts.roll(1, dims=0), routing.weights, routing.scores, routing.loads, routing.num_tokens)
    other = run("fused", moved, dtype=torch.float64, gated=False, bias=False)[0]
    assert (out - other).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [D, 18], ids=["aligned", "unaligned"])
def test_backend_chosen_is_one_that_runs(dtype, width):
    x, up, down = (torch.randn(*shape).to(dtype) for shape in ((5, width), (E, F, width), (E, width, F)))
    assert choose_backend(x, up=up, down=down, copies=10**6) == "fused"
    out = grouped_mlp(x, random_routing(5, dtype=torch.float32), up=up, down=down)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "width", "expected"),
    [
        (torch.float32, D, "grouped"),
        (torch.float32, 18, "fused"),
        (torch.float64, D, "fused"),
        (torch.bfloat16, D, "grouped"),
        (torch.bfloat16, 20, "fused"),
    ],
    ids=["float32", "float32-unaligned", "float64", "bfloat16", "bfloat16-unaligned"],
)
def test_a_gpu_gets_torchs_kernel_where_it_runs(dtype, width, expected, monkeypatch):
    """Asked of tensors that are nowhere, with a device that is said to be able."""
    monkeypatch.setattr(sorted_backend, "_device_can", lambda x: True)
    x, up, down = (
        torch.empty(*shape, dtype=dtype, device="meta") for shape in ((5, width), (E, F, width), (E, width, F))
    )
    assert choose_backend(x, up=up, down=down, copies=1000) == expected
    monkeypatch.setattr(sys.modules["sortyard.ops.grouped_mlp"], "is_compiled", lambda device: True)
    many = "triton" if (dtype, expected) == (torch.bfloat16, "grouped") else expected
    assert choose_backend(x, up=up, down=down, copies=200_000) == many


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, D), (torch.float32, 18)], ids=["float64", "unaligned"])
def test_what_the_grouped_kernel_cannot_do_is_refused(dtype, width):
    x, up, down = (torch.randn(*shape, dtype=dtype) for shape in ((3, width), (E, F, width), (E, width, F)))
    with pytest.raises(ValueError, match="backend='grouped' cannot multiply"):
        grouped_mlp(x, random_routing(3, dtype=dtype), up=up, down=down, backend="grouped")


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_operands_may_lie_anyhow(backend, gated):
    """Transposed matrices, a slice of wider tokens, strided routing, a gradient that is one number expanded."""
    width = 2 * F if gated else F
    generator = torch.Generator().manual_seed(2)
    x, up, down = (torch.randn(*shape, generator=generator) / 4 for shape in ((2, D, 9), (E, D, width), (E, F, D)))
    leaves = [x[1].t().requires_grad_(), up.transpose(1, 2).requires_grad_(), down.transpose(1, 2).requires_grad_()]
    whole = random_routing(9, dtype=torch.float32)
    strided = make_routing(whole.experts.t().contiguous().t(), whole.weights.t().contiguous().t())
    found = []
    for routing, operands in (
        (strided, leaves),
        (whole, [leaf.detach().contiguous().requires_grad_() for leaf in leaves]),
    ):
        own, to, back = operands
        out = grouped_mlp(own, routing, up=to, down=back, gated=gated, backend=backend)
        found.append([out, *torch.autograd.grad(out.sum(), operands)])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_autocast_sets_the_type_of_the_result_and_not_of_the_gradients(backend):
    x, up, down = torch.randn(9, D), torch.randn(E, F, D).requires_grad_(), torch.randn(E, D, F)
    routing = random_routing(9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = grouped_mlp(x, routing, up=up, down=down, backend=backend)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


def test_grouped_has_the_references_second_derivative():
    def second(backend: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        shapes = ((9, D), (E, F, D), (E, D, F))
        leaves = [(torch.randn(*shape, generator=generator) / 4).requires_grad_() for shape in shapes]
        out = grouped_mlp(
            leaves[0], random_routing(9, dtype=torch.float32), up=leaves[1], down=leaves[2], backend=backend
        )
        (first,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), leaves))

    assert_near(second("grouped"), second("reference"), tolerance=1e-5)


def test_unknown_names_and_widths_are_refused():
    x, up, down = torch.randn(3, D), torch.randn(E, F, D), torch.randn(E, D, F)
    routing = random_routing(3, dtype=torch.float32)
    with pytest.raises(ValueError, match="choose one of reference, grouped, fused, triton"):
        grouped_mlp(x, routing, up=up, down=down, backend="fast")
    with pytest.raises(ValueError, match="choose one of gelu"):
        grouped_mlp(x, routing, up=up, down=down, activation="softplus")
    with pytest.raises(ValueError, match="2F"):
        grouped_mlp(x, routing, up=up, down=down, gated=True)
