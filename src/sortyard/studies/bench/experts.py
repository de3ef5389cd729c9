"""`bench experts`: our expert layer beside a dense layer of equal active work and other experts, over tokens."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sortyard.studies.bench.budgets import Budget
from sortyard.studies.bench.cases import make_call
from sortyard.studies.bench.comparison import Terms, compare_sides, notes_of, sides_study
from sortyard.studies.bench.experts_cases import ExpertCase, expert_cases, make_inputs
from sortyard.studies.bench.experts_check import WRONG
from sortyard.studies.bench.experts_page import experts_page, experts_text
from sortyard.studies.bench.experts_sides import DENSE, OURS, PEERS, ExpertSide, experts_probe, find_sides
from sortyard.studies.bench.results import BenchResult, bench_command, new_result
from sortyard.studies.bench.runner import Call, ratio_of
from sortyard.studies.bench.study import Say, run_study

Json = dict[str, Any]
WHAT = (
    "seconds of one call by tokens, how many times those of a dense layer of equal active work in the same alternated "
    "run, and the peak memory of one call on top of its inputs (results and gradients included); ours includes router, "
    "loads and balance loss, the others' experts a plain router on the same gate; no biases, no context, one group"
)


@dataclass(frozen=True)
class ExpertsPlan:
    """What `bench experts` measures.

    Attributes:
        tokens: Tokens of the one sequence.
        experts: Pairs of experts and experts of a token.
        dtypes: Among "fp32" and "bf16".
        directions: Among "forward" and "forward+backward".
        hidden_size: Width of a token.
        intermediate_size: Inner width of the dense layer, and of a token's experts together.
        threads: Threads of torch.
        repetitions: Measured rounds of a cell; a slow side has fewer.
        memory: Numbers of tokens at which memory is measured.
        sides: Names to measure, "dense" always among them; empty = all.
        seed: Seed of weights and tokens.
        device: "cpu" or "cuda".
        budget: Where a side stops.
        minutes: Time for the whole; infinite where it does not matter.
    """

    tokens: tuple[int, ...]
    experts: tuple[tuple[int, int], ...]
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]
    hidden_size: int
    intermediate_size: int
    threads: int
    repetitions: int
    memory: tuple[int, ...]
    sides: tuple[str, ...]
    seed: int
    device: str
    budget: Budget
    minutes: float

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = {
            "--tokens": ",".join(map(str, self.tokens)),
            "--experts": ",".join(f"{num_experts}x{per_tok}" for num_experts, per_tok in self.experts),
            "--dtypes": ",".join(self.dtypes),
            "--directions": ",".join(self.directions),
            "--hidden-size": self.hidden_size,
            "--intermediate-size": self.intermediate_size,
            "--threads": self.threads,
            "--repetitions": self.repetitions,
            "--memory": ",".join(map(str, self.memory)) or "none",
            "--call-seconds": self.budget.call_seconds,
            "--seed": self.seed,
            "--device": self.device,
            "--minutes": self.minutes,
            "--sides": ",".join(self.sides),
        }
        return bench_command("experts", words)

    def settings(self) -> Json:
        """Return what changes the value of a cell; the rest only chooses what there is."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "repetitions": self.repetitions,
            "device": self.device,
            **asdict(self.budget),
        }

    def terms(self, *, seconds: float) -> Terms:
        """Return how sides are compared in a cell that should keep to so many seconds."""
        probe = f"{experts_probe.__module__}:{experts_probe.__name__}"
        return Terms(
            repetitions=self.repetitions, threads=self.threads, budget=self.budget, probe=probe, memory=self.memory,
            seconds=seconds,
        )  # fmt: skip

    def cases(self) -> list[ExpertCase]:
        """Return every cell's case."""
        return expert_cases(
            experts=self.experts, dtypes=self.dtypes, directions=self.directions, tokens=self.tokens,
            hidden_size=self.hidden_size, intermediate_size=self.intermediate_size, seed=self.seed, device=self.device,
        )  # fmt: skip


def run_experts(plan: ExpertsPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing experts.json after every cell and experts.html at the end.

    Args:
        plan: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the folder holds a result of other settings, code or machine.
    """
    begun = new_result(
        "experts", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device=plan.device,
        settings=plan.settings(), packages=("transformers",), sources=("ops", "model/experts"),
    )  # fmt: skip
    everyone = find_sides(plan.device)
    study = sides_study(
        begun,
        cases=plan.cases(),
        sides=lambda _: everyone,
        asked=plan.sides,
        memory=plan.memory,
        measure=lambda case, sides, cells, seconds: measure_cell(
            case, sides, plan=plan, cells=cells, seconds=seconds, say=say
        ),
        summarise=lambda cells: {
            "sides": notes_of(everyone, cells),
            "wrong": wrong_sides(cells),
            "cells": summarise(cells),
        },
        write_page=experts_page,
        write_text=experts_text,
    )
    return run_study(study, folder=folder, fresh=fresh, say=say, seconds=60 * plan.minutes)


def measure_cell(
    case: ExpertCase,
    sides: Mapping[str, ExpertSide],
    *,
    plan: ExpertsPlan,
    cells: Mapping[str, Json],
    seconds: float,
    say: Say,
) -> Json:
    """Measure one case: whether results are right, memory in processes of their own, then time, alternated.

    Args:
        case: The case.
        sides: The sides by name.
        plan: Repetitions, threads, budget and where to measure memory.
        cells: What was measured before, from which the cost is predicted.
        seconds: Time that the cell should keep to.
        say: Takes a line of progress.

    Returns:
        The cell: the largest load over a fair one, and for each side its seconds, how many times dense's they are,
        peak memory, deviation from the truth, or why it was skipped.
    """
    inputs = make_inputs(case)
    with torch.no_grad():
        loads = inputs.layer.router(inputs.hidden, None, None, inputs.segments).loads

    def calls(names: Collection[str]) -> dict[str, Call]:
        return {name: make_call(sides[name].work(inputs, case), direction=case.direction) for name in names}

    records = compare_sides(case, sides, calls=calls, terms=plan.terms(seconds=seconds), cells=cells, say=say)
    dense = records[DENSE]["seconds"]
    for record in records.values():
        own = record["seconds"]
        record["times_dense"] = ratio_of(own, dense).record() if dense and own else None
    return {
        "length": case.length, "experts": [case.num_experts, case.num_experts_per_tok], "dtype": case.dtype,
        "direction": case.direction, "max_over_fair_load": float(loads.max() / loads.mean()), "sides": records,
    }  # fmt: skip


def summarise(cells: Mapping[str, Json]) -> Json:
    """What ours takes beside the dense layer and beside the fastest of transformers' functions, cell by cell."""
    return {key: _summarise_cell(cell["sides"]) for key, cell in cells.items()}


def wrong_sides(cells: Mapping[str, Json]) -> list[str]:
    """Name every side that gave a wrong result, with its cell."""
    return [
        f"{name} ({key})"
        for key, cell in cells.items()
        for name, record in cell["sides"].items()
        if record["skipped"].startswith(WRONG)
    ]


def _summarise_cell(sides: Mapping[str, Json]) -> Json:
    ours = sides.get(OURS, {}).get("seconds")
    peers = {name: record for name, record in sides.items() if name.startswith(PEERS) and record["seconds"]}
    best = min(peers, key=lambda name: float(peers[name]["median_seconds"]), default=None)
    return {
        "ours": sides[OURS]["times_dense"] if ours else None,
        "best_peer": best,
        "peer": peers[best]["times_dense"] if best else None,
        "faster_than_peer": ratio_of(peers[best]["seconds"], ours).record() if best and ours else None,
    }
