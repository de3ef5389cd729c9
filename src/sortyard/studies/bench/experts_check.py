"""Whether a side computes what it should, before any of its times counts."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.interop.exporting import worst_of
from sortyard.ops.grouped_mlp import grouped_mlp
from sortyard.studies.bench.cases import FORWARD, Work
from sortyard.studies.bench.experts_cases import ACTIVATION, ExpertCase, ExpertInputs, make_inputs
from sortyard.studies.bench.runner import reason_of

# Largest difference over the largest value, of the output and of each gradient.
TOLERANCES = {"fp32": 2e-5, "bf16": 2e-2}
WRONG = "wrong result"


@runtime_checkable
class CheckedSide(Protocol):
    """What is checked of a side."""

    @property
    def is_dense(self) -> bool:
        """Whether it is the dense layer."""

    def work(self, inputs: ExpertInputs, case: ExpertCase, /) -> Work:
        """Return its work on a case's inputs."""


@dataclass(frozen=True)
class Deviation:
    """How far a side's results are from the truth.

    Attributes:
        largest: Largest difference over the largest value, of the output and of each gradient; None where it failed.
        problem: Why it cannot be measured; empty where it is right.
    """

    largest: float | None
    problem: str


@cache
def deviation(side: CheckedSide, case: ExpertCase) -> Deviation:
    """Compare a side's output, and where the case asks for them its gradients, with the experts in float64.

    The truth is our reference backend in float64 behind our float32 router, or the dense layer in float64.

    Args:
        side: The side.
        case: A small case.

    Returns:
        The largest difference, and what is wrong if something is.
    """
    inputs = make_inputs(case)
    truth = _dense_in_float64 if side.is_dense else _experts_in_float64
    try:
        found = _results(side.work(inputs, case), case)
    except Exception as error:  # a side may fail in any way; the others go on
        return Deviation(None, reason_of(error))
    exact = _results(Work(lambda: truth(inputs), side.work(inputs, case).leaves, inputs.gradient.double()), case)
    differences = [
        float((own.double() - true.double()).abs().max() / true.abs().max())
        for own, true in zip(found, exact, strict=True)
    ]
    largest = worst_of(differences)
    if math.isnan(largest):
        return Deviation(None, f"{WRONG}: not a number")
    if largest <= TOLERANCES[case.dtype]:
        return Deviation(largest, "")
    return Deviation(largest, f"{WRONG}: off by {largest:.1g}, more than {TOLERANCES[case.dtype]:g}")


def _results(work: Work, case: ExpertCase) -> list[Tensor]:
    if case.direction == FORWARD:
        with torch.no_grad():
            return [work.forward()]
    out = work.forward()
    return [out.detach(), *torch.autograd.grad(out, work.leaves, work.gradient)]


def _experts_in_float64(inputs: ExpertInputs) -> Tensor:
    routing = inputs.layer.router(inputs.hidden, None, None, inputs.segments)
    hidden, up, down = (x.double() for x in (inputs.hidden.flatten(0, 1), inputs.up, inputs.down))
    mixed = grouped_mlp(hidden, routing, up=up, down=down, activation=ACTIVATION, backend="reference")
    return mixed.view_as(inputs.hidden)


def _dense_in_float64(inputs: ExpertInputs) -> Tensor:
    up, down = (weight.double() for weight in inputs.dense.parameters())
    return F.linear(F.gelu(F.linear(inputs.hidden.double(), up)), down)
