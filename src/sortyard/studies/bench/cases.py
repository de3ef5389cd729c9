"""One measured situation: a length, a dtype, a direction, and the tensors that go with them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.studies.bench.runner import Call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORWARD, BOTH = "forward", "forward+backward"
DIRECTIONS = (FORWARD, BOTH)


@dataclass(frozen=True)
class Case:
    """What one cell measures.

    Attributes:
        length: Tokens of the sequence.
        dtype: "fp32" or "bf16".
        direction: "forward" (without gradients, as in use) or "forward+backward".
        heads: Attention heads.
        head_width: Width of a head.
        seed: Seed of the random inputs.
        device: Where it runs.
    """

    length: int
    dtype: str
    direction: str
    heads: int
    head_width: int
    seed: int
    device: str

    @property
    def line(self) -> str:
        """What it has in common with the cases of other lengths."""
        return f"{self.dtype}/{self.direction}"

    @property
    def key(self) -> str:
        """The cell's name in a result."""
        return f"{self.line}/{self.length}"

    def at(self, length: int) -> Self:
        """Return the same at another length."""
        return replace(self, length=length)

    def fields(self) -> dict[str, Any]:
        """Return what the case is made from, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Inputs:
    """Queries, keys, values and the output's gradient of a case, random but the same for every side."""

    q: Float[Tensor, "1 H n K"]
    k: Float[Tensor, "1 H n K"]
    v: Float[Tensor, "1 H n K"]
    gradient: Float[Tensor, "1 H n K"]


@dataclass(frozen=True)
class Work:
    """What one side does in a case.

    Attributes:
        forward: Computes the output.
        leaves: The tensors whose gradients the backward direction asks for.
        gradient: The output's gradient, in the output's shape.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    gradient: Tensor


def make_inputs(case: Case) -> Inputs:
    """Draw a case's tensors."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (1, case.heads, case.length, case.head_width)
    drawn = [torch.randn(shape, generator=generator).to(case.device, DTYPES[case.dtype]) for _ in range(4)]
    if case.direction == BOTH:
        drawn[:3] = [x.requires_grad_() for x in drawn[:3]]
    return Inputs(*drawn)


def make_call(work: Work, *, direction: str) -> Call:
    """Turn a side's work into one call that does all of it, in a direction."""
    if direction == FORWARD:
        return torch.no_grad()(work.forward)
    return lambda: torch.autograd.grad(work.forward(), work.leaves, work.gradient)


def synchroniser(device: str) -> Call:
    """What waits for a device's work."""
    return torch.cuda.synchronize if device.startswith("cuda") else _no_wait


def cell_cases(
    *, dtypes: tuple[str, ...], directions: tuple[str, ...], lengths: tuple[int, ...], **shared: Any
) -> list[Case]:
    """Every case of a grid, lengths rising fastest, so that a length can be judged by the one before it."""
    return [
        Case(length=length, dtype=dtype, direction=direction, **shared)
        for dtype in dtypes
        for direction in directions
        for length in sorted(lengths)
    ]


def _no_wait() -> None:
    return None
