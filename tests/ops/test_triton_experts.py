"""The experts' Triton kernels against masked torch products: on a GPU where there is one, else interpreted."""

# ruff: noqa: E402
# Triton decides at import whether its functions are interpreted, so the variable comes before the imports.

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton was imported before TRITON_INTERPRET=1 could be set", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed")

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import ACTIVATIONS, activate, grouped_mlp
from sortyard.ops.grouped_mlp.reference import masked_mlp
from sortyard.ops.grouped_mlp.triton_backend import is_available, product_kernels, triton_mlp
from sortyard.ops.grouped_mlp.triton_backend.activation_kernels import KERNEL_NAMES

# No multiples of a block of 16 or 32 columns; small, because the interpreter needs milliseconds for a program's step.
D, F = 20, 12
GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
Operands = dict[str, Tensor | None]


@dataclass(frozen=True)
class Call:
    """One call's operands, in float64 unless cast."""

    x: Tensor
    routing: Routing
    operands: Operands
    activation: str = "gelu"
    gated: bool = False

    def cast(self, dtype: torch.dtype) -> "Call":
        operands = {name: _leaf(value, dtype) for name, value in self.operands.items()}
        weights = _leaf(self.routing.weights, torch.float64 if dtype == torch.float64 else torch.float32)
        return replace(self, x=_leaf(self.x, dtype), operands=operands, routing=replace(self.routing, weights=weights))


def _leaf(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.detach().to(dtype, copy=True).requires_grad_()


def route_by(experts: Tensor, *, num_experts: int, generator: torch.Generator) -> Routing:
    """A routing to these experts; rows of `num_experts` are padding."""
    real = experts[:, 0] < num_experts
    weights = (0.1 + torch.rand(experts.shape, generator=generator, dtype=torch.float64)) * real[:, None]
    loads = torch.bincount(experts.flatten(), minlength=num_experts + 1)[:num_experts].float()
    scores = torch.zeros(len(experts), num_experts, dtype=torch.float64)
    made = [value.to(DEVICE) for value in (experts, weights, scores, loads)]
    return Routing(made[0], made[1].requires_grad_(), made[2], made[3], int(real.sum()))


def draw(
    num_tokens: int,
    *,
    num_experts: int = 5,
    per_token: int = 2,
    shares: Tensor | None = None,
    padding: int = 0,
    widths: tuple[int, int] = (D, F),
    biased: bool = True,
    **options: object,
) -> Call:
    """A call of `num_tokens`, whose experts are drawn by their shares; every `padding`-th token is padding."""
    generator = torch.Generator().manual_seed(num_tokens)
    shares = torch.ones(num_experts) if shares is None else shares
    experts = (
        torch.multinomial(shares.expand(num_tokens, -1), per_token, generator=generator)
        if num_tokens
        else torch.zeros(0, per_token, dtype=torch.long)
    )
    if padding:
        experts[::padding] = num_experts
    hidden, inner = widths
    up = inner * (2 if options.get("gated") else 1)
    shapes = {
        "up": (num_experts, up, hidden),
        "down": (num_experts, hidden, inner),
        "up_bias": (num_experts, up),
        "down_bias": (num_experts, hidden),
    }
    operands: Operands = {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3).to(DEVICE).requires_grad_()
        if biased or "bias" not in name
        else None
        for name, shape in shapes.items()
    }
    x = torch.randn(num_tokens, hidden, generator=generator, dtype=torch.float64).to(DEVICE).requires_grad_()
    return Call(x, route_by(experts, num_experts=num_experts, generator=generator), operands, **options)


def results(call: Call, backend: object = triton_mlp) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    out = backend(call.x, call.routing, activation=call.activation, gated=call.gated, **call.operands)
    leaves = {"x": call.x, "weights": call.routing.weights, **call.operands}
    leaves = {name: value for name, value in leaves.items() if value is not None}
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out)
    return {"out": out, **dict(zip(leaves, torch.autograd.grad((out * weight).sum(), leaves.values()), strict=True))}


def assert_agrees(call: Call, *, atol: float = 1e-12) -> None:
    ours, theirs = results(call), results(call, masked_mlp)
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@GATED
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "relu2", "silu", "tanh"])
def test_values_and_gradients_equal_the_masked_products(activation: str, gated: bool) -> None:
    assert_agrees(draw(11, num_experts=2, per_token=1, activation=activation, gated=gated))


def test_the_kernels_know_every_activation() -> None:
    """By name; names that share a kernel are the same function, so that testing one of them tests all."""
    assert set(KERNEL_NAMES) == set(ACTIVATIONS)
    x = torch.linspace(-3, 3, 50)
    values: dict[str, Tensor] = {}
    for name, kernel_name in KERNEL_NAMES.items():
        found = activate(x, activation=name, gated=False)
        assert torch.equal(values.setdefault(kernel_name, found), found)
    with pytest.raises(ValueError, match="unknown to experts"):
        results(draw(3, activation="mish"))


@GATED
@pytest.mark.parametrize("missing", ["up_bias", "down_bias", "both"])
def test_biases_may_be_missing(missing: str, gated: bool) -> None:
    call = draw(11, num_experts=2, per_token=1, gated=gated)
    names = ["up_bias", "down_bias"] if missing == "both" else [missing]
    assert_agrees(replace(call, operands={**call.operands, **dict.fromkeys(names)}))


SHARES = {
    "one-takes-all": [0.0, 0.0, 1.0, 0.0, 0.0],
    "first-and-last": [1.0, 0.0, 0.0, 0.0, 9.0],
    "skewed": [100.0, 30.0, 1.0, 1.0, 0.0],
}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("padding", [0, 3], ids=["full", "padded"])
def test_uneven_runs_and_experts_without_tokens(shares: list[float], padding: int) -> None:
    per_token = 1 if shares.count(0.0) == 4 else 2
    assert_agrees(draw(53, per_token=per_token, shares=torch.tensor(shares), padding=padding))


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "per_token"), [(1, 1, 1), (16, 1, 1), (1, 8, 8), (32, 2, 1), (61, 17, 3)]
)
def test_sizes(num_tokens: int, num_experts: int, per_token: int) -> None:
    assert_agrees(draw(num_tokens, num_experts=num_experts, per_token=per_token, gated=True))


@GATED
@pytest.mark.parametrize("widths", [(17, 13), (64, 32), (7, 65)], ids=str)
def test_widths(widths: tuple[int, int], gated: bool) -> None:
    assert_agrees(draw(19, num_experts=2, per_token=1, widths=widths, gated=gated))


@pytest.mark.parametrize("num_tokens", [0, 6])
def test_without_real_tokens_everything_is_zero(num_tokens: int) -> None:
    found = results(draw(num_tokens, padding=1))
    assert all(not value.any() for value in found.values())


def test_float32_errs_by_few_roundings_of_the_largest_value() -> None:
    call = draw(61, padding=7, widths=(40, 24), gated=True).cast(torch.float32)
    truth = results(call.cast(torch.float64), masked_mlp)
    for name, found in results(call).items():
        assert (found - truth[name]).abs().max() <= 2e-6 * truth[name].abs().max(), name


@GATED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_floats_err_at_most_twice_as_much_as_torch(dtype: torch.dtype, gated: bool) -> None:
    short = draw(61, padding=7, widths=(40, 24), gated=gated).cast(dtype)
    truth = results(short.cast(torch.float64), masked_mlp)
    ours, twin = results(short), results(short, masked_mlp)
    for name, true in truth.items():
        assert ours[name].dtype == twin[name].dtype
        assert (ours[name] - true).abs().max() <= 2 * (twin[name] - true).abs().max(), name


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill every buffer that torch leaves uninitialised with NaN."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            make = getattr(torch, name)

            def make_poisoned(*sizes: object, make: object = make, **options: object) -> Tensor:
                made: Tensor = make(*sizes, **options)
                return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(1 << 20)

            patch.setattr(torch, name, make_poisoned)
        yield


@GATED
def test_nothing_reads_padding_or_uninitialised_memory(gated: bool, poisoned: None) -> None:
    call = draw(29, padding=4, shares=torch.tensor(SHARES["skewed"]), gated=gated)
    is_real = call.routing.experts[:, :1] < 5
    dirty = replace(call, x=call.x.detach().masked_fill(~is_real, torch.nan).requires_grad_())
    found, expected = results(dirty), results(call, masked_mlp)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
    assert not found["out"][~is_real[:, 0]].any()


def test_the_same_twice_is_the_same_bit_for_bit_and_nothing_is_used_up() -> None:
    call = draw(21, gated=True).cast(torch.float32)
    out = triton_mlp(call.x, call.routing, activation="silu", gated=True, **call.operands)
    first, second = (torch.autograd.grad(out.sum(), [call.x, call.operands["up"]], retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    call = draw(23)
    expected = results(call, masked_mlp)
    frozen = {name: None if value is None else value.detach() for name, value in call.operands.items()}
    adapted = replace(call, operands={**frozen, "up_bias": call.operands["up_bias"]})
    out = triton_mlp(call.x.detach(), call.routing, activation="gelu", gated=False, **adapted.operands)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out)
    (out * weight).sum().backward()
    torch.testing.assert_close(call.operands["up_bias"].grad, expected["up_bias"], rtol=0, atol=1e-12)
    torch.testing.assert_close(call.routing.weights.grad, expected["weights"], rtol=0, atol=1e-12)
    assert call.x.grad is None


def test_without_gradients_nothing_is_kept() -> None:
    call = draw(23, gated=True)
    with torch.no_grad():
        out = triton_mlp(call.x, call.routing, activation="gelu", gated=True, **call.operands)
    assert not out.requires_grad
    torch.testing.assert_close(out, results(call, masked_mlp)["out"], rtol=0, atol=1e-12)


def test_strided_operands() -> None:
    call = draw(13, num_experts=2, per_token=1)
    up = call.operands["up"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    x = torch.cat([call.x.detach()] * 2, 1)[:, :D].requires_grad_()
    assert_agrees(replace(call, x=x, operands={**call.operands, "up": up}))
    out = triton_mlp(x, call.routing, activation="gelu", gated=False, **call.operands)
    (grad,) = torch.autograd.grad(out.sum(), [x])  # the gradient that comes in is one number, expanded
    (expected,) = torch.autograd.grad(
        masked_mlp(x, call.routing, activation="gelu", gated=False, **call.operands).sum(), [x]
    )
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels do not look their parts up again")
@pytest.mark.parametrize("part", ["expert", "bias", "slope"])
def test_a_spoilt_kernel_is_noticed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find, bias, activate = product_kernels.find_expert, product_kernels.load_bias, product_kernels.activate

    def wrong_expert(ends: object, tile: object, *sizes: object) -> object:
        expert, within = find(ends, tile, *sizes)
        return expert, within + (expert == 2)

    def wrong_bias(*arguments: object) -> object:
        return bias(*arguments) * 1.001

    def wrong_slope(x: object, name: object) -> object:
        value, slope = activate(x, name)
        return value, slope * 1.001

    spoilt = {"expert": ("find_expert", wrong_expert), "bias": ("load_bias", wrong_bias)}
    name, function = spoilt.get(part, ("activate", wrong_slope))
    monkeypatch.setattr(product_kernels, name, function)
    with pytest.raises(AssertionError, match=r"Tensor-likes are not close"):
        assert_agrees(draw(11, num_experts=3, per_token=2))


def test_the_front_door_casts_as_autocast_does() -> None:
    call = draw(9, num_experts=2, per_token=1).cast(torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = grouped_mlp(call.x, call.routing, **call.operands, backend="triton")
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in (call.x, *call.operands.values()))


def test_a_second_derivative_is_refused() -> None:
    call = draw(3, num_experts=1, per_token=1)
    out = triton_mlp(call.x, call.routing, activation="gelu", gated=False, **call.operands)
    (first,) = torch.autograd.grad(out.square().sum(), call.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_package_imports_without_triton() -> None:
    assert is_available(DEVICE)
    code = "import sys; sys.modules['triton'] = None; import sortyard.ops.grouped_mlp.triton_backend"
    subprocess.run([sys.executable, "-c", code], check=True)
