"""The sides of `bench experts`: a dense layer of equal active work, ours by backend, and experts of others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sortyard.ops.grouped_mlp import BACKENDS, grouped_mlp
from sortyard.studies.bench.cases import DTYPES, Work, make_call
from sortyard.studies.bench.experts_cases import ACTIVATION, ExpertCase, ExpertInputs, make_inputs
from sortyard.studies.bench.experts_check import deviation
from sortyard.studies.bench.experts_peers import (
    IMPLEMENTATIONS,
    gathered_bytes,
    missing_peer,
    naive_experts,
    routed_call,
    transformers_experts,
)
from sortyard.studies.bench.memory import Probe
from sortyard.studies.bench.runner import Call

DENSE, OURS, PEERS = "dense", "sortyard", "transformers-"
CHECK_LENGTH = 64
_ONLY_ON_CUDA = ("triton",)
Make = Callable[[ExpertInputs, ExpertCase], Callable[[], Tensor]]


@dataclass(frozen=True)
class ExpertSide:
    """One competitor.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        make: What computes its output from a case's inputs.
        is_dense: Whether it is the dense layer.
        is_compiled: Whether its first call compiles.
        missing: Why it cannot be had; empty where it can.
        gathers: Whether it gathers a matrix for every routed copy.
    """

    name: str
    note: str
    make: Make
    is_dense: bool = False
    is_compiled: bool = False
    missing: Callable[[], str] = lambda: ""
    gathers: bool = False
    # Work is linear in the tokens; a little more, for memory that no longer fits a cache and for sorting.
    time_power: float = 1.1
    memory_power: float = 1.1

    @property
    def needs_warmup(self) -> bool:
        """Whether its first call compiles."""
        return self.is_compiled

    def unfit(self, case: ExpertCase) -> str:
        """Why a case cannot be measured with it: it cannot be had, fails, or gives another result."""
        return self.missing() or deviation(self, case.at(min(case.length, CHECK_LENGTH))).problem

    def least_bytes(self, case: ExpertCase) -> int:
        """What a call needs for certain: the gathered matrices, where there are some."""
        return gathered_bytes(case, DTYPES[case.dtype].itemsize) if self.gathers else 0

    def work(self, inputs: ExpertInputs, case: ExpertCase) -> Work:
        """Its work on a case's inputs; gradients are asked of the tokens and of every weight."""
        leaves = tuple(inputs.dense.parameters()) if self.is_dense else (inputs.up, inputs.down, inputs.gate)
        return Work(self.make(inputs, case), (inputs.hidden, *leaves), inputs.gradient)

    def call(self, case: ExpertCase) -> Call:
        """Its work in a case, on inputs made here."""
        return make_call(self.work(make_inputs(case), case), direction=case.direction)

    def facts(self, case: ExpertCase) -> dict[str, Any]:
        """How far its results are from the truth, where that was looked at."""
        found = None if self.missing() else deviation(self, case.at(min(case.length, CHECK_LENGTH))).largest
        return {"deviation": found}


def find_sides(device: str) -> dict[str, ExpertSide]:
    """Every side that a device can be asked about, dense first; what cannot be had is among them and says so."""
    dense = ExpertSide(
        DENSE, "two linear layers and GELU, as wide as a token's experts together", _dense, is_dense=True
    )
    ours = ExpertSide(OURS, "ours: ExpertLayer, that is router, loads, balance loss, its own choice of backend", _layer)
    sides = [dense, _compiled(dense), ours, _compiled(ours)]
    sides += [_own(name) for name in BACKENDS if name not in _ONLY_ON_CUDA or device.startswith("cuda")]
    sides += [_transformers(name) for name in IMPLEMENTATIONS]
    sides.append(ExpertSide("naive", "a plain router, then a loop of masks over indexed weights", _naive))
    return {side.name: side for side in sides}


def experts_probe(*, side: str, **fields: Any) -> Probe:
    """What the memory measurement's child runs: one side in one case, and before it the same at a small length."""
    case = ExpertCase(**fields)
    chosen = find_sides(case.device)[side]
    call = chosen.call(case)
    # A compiled side is compiled for each length: that must not be counted.
    return Probe(call=call, warm=call if chosen.is_compiled else chosen.call(case.at(CHECK_LENGTH)))


def _own(backend: str) -> ExpertSide:
    note = f"ours: router and grouped_mlp with backend {backend}, without the balance loss"
    return ExpertSide(f"{OURS}-{backend}", note, partial(_routed, backend=backend))


def _transformers(name: str) -> ExpertSide:
    def make(inputs: ExpertInputs, case: ExpertCase) -> Callable[[], Tensor]:
        return routed_call(inputs, case, transformers_experts(inputs, case, implementation=IMPLEMENTATIONS[name]))

    note = f"a plain router, then transformers' experts module set to {IMPLEMENTATIONS[name]}, on the same weights"
    return ExpertSide(f"{PEERS}{name}", note, make, missing=missing_peer, gathers=name == "batched")


def _compiled(side: ExpertSide) -> ExpertSide:
    def make(inputs: ExpertInputs, case: ExpertCase) -> Callable[[], Tensor]:
        torch.compiler.reset()  # each case compiles anew, and torch allows only so many versions of a function
        compiled: Callable[[], Tensor] = torch.compile(side.make(inputs, case), fullgraph=True, dynamic=False)
        return compiled

    note = f"{side.name} under torch.compile(fullgraph=True), for this length"
    return replace(side, name=f"{side.name}-compiled", note=note, make=make, is_compiled=True)


def _dense(inputs: ExpertInputs, _: ExpertCase) -> Callable[[], Tensor]:
    dense, hidden = inputs.dense, inputs.hidden
    return lambda: dense(hidden)


def _layer(inputs: ExpertInputs, _: ExpertCase) -> Callable[[], Tensor]:
    layer, hidden, segments = inputs.layer, inputs.hidden, inputs.segments
    return lambda: layer(hidden, segments=segments)[0]


def _routed(inputs: ExpertInputs, _: ExpertCase, *, backend: str) -> Callable[[], Tensor]:
    def call() -> Tensor:
        routing = inputs.layer.router(inputs.hidden, None, None, inputs.segments)
        mixed = grouped_mlp(
            inputs.hidden.flatten(0, 1), routing, up=inputs.up, down=inputs.down, activation=ACTIVATION, backend=backend
        )
        return mixed.view_as(inputs.hidden)

    return call


def _naive(inputs: ExpertInputs, case: ExpertCase) -> Callable[[], Tensor]:
    return routed_call(inputs, case, naive_experts(inputs, case))
