"""`bench attention`: bucket attention beside dense attention and other LSH attention, over lengths."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sortyard.studies.bench.attention_page import attention_page, attention_text
from sortyard.studies.bench.budgets import Budget, expected_seconds, refusal
from sortyard.studies.bench.cases import Case, cell_cases, make_call, make_inputs, synchroniser
from sortyard.studies.bench.fits import crossover, log_log_slope
from sortyard.studies.bench.memory import peak_extra_memory
from sortyard.studies.bench.peers import PACKAGES
from sortyard.studies.bench.results import BenchResult, new_result, resume_result, save_result
from sortyard.studies.bench.runner import alternate, ratio_of
from sortyard.studies.bench.sides import DENSE, Side, find_sides

Json = dict[str, Any]
Say = Callable[[str], None]
SLOPE_FROM, SLOPE_TO = 4096, 131_072
WHAT = (
    "seconds of one call by length, how many times faster than dense attention in the same alternated run, and the "
    "peak memory of one call on top of its inputs (results and gradients included)"
)


@dataclass(frozen=True)
class AttentionPlan:
    """What `bench attention` measures.

    Attributes:
        lengths: Tokens of the sequences.
        dtypes: Among "fp32" and "bf16".
        directions: Among "forward" and "forward+backward".
        heads: Attention heads.
        head_width: Width of a head.
        threads: Threads of torch.
        repetitions: Measured rounds of a cell; a slow side has fewer.
        memory: Lengths at which memory is measured.
        sides: Names to measure, "dense" always among them; empty = all.
        seed: Seed of the inputs.
        device: "cpu" or "cuda".
        budget: Where a side stops.
    """

    lengths: tuple[int, ...]
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]
    heads: int
    head_width: int
    threads: int
    repetitions: int
    memory: tuple[int, ...]
    sides: tuple[str, ...]
    seed: int
    device: str
    budget: Budget

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = {
            "--lengths": ",".join(map(str, self.lengths)),
            "--dtypes": ",".join(self.dtypes),
            "--directions": ",".join(self.directions),
            "--heads": self.heads,
            "--head-width": self.head_width,
            "--threads": self.threads,
            "--repetitions": self.repetitions,
            "--memory": ",".join(map(str, self.memory)) or "none",
            "--seed": self.seed,
            "--device": self.device,
        } | ({"--sides": ",".join(self.sides)} if self.sides else {})
        return "sortyard bench attention " + " ".join(f"{option} {value}" for option, value in words.items())

    def settings(self) -> Json:
        """Return what changes the value of a cell; lengths, dtypes, directions and sides only choose cells."""
        return {
            "batch": 1,
            "heads": self.heads,
            "head_width": self.head_width,
            "repetitions": self.repetitions,
            "memory": list(self.memory),
            "device": self.device,
            **asdict(self.budget),
        }

    def cases(self) -> list[Case]:
        """Return every cell's case."""
        return cell_cases(
            dtypes=self.dtypes, directions=self.directions, lengths=self.lengths,
            heads=self.heads, head_width=self.head_width, seed=self.seed, device=self.device,
        )  # fmt: skip


def run_attention(plan: AttentionPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing attention.json after every cell and attention.html at the end.

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
    torch.set_num_threads(plan.threads)
    begun = new_result(
        "attention", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device=plan.device,
        settings=plan.settings(), packages=PACKAGES,
    )  # fmt: skip
    result = resume_result(begun, folder=folder, fresh=fresh)
    sides = {name: side for name, side in find_sides(plan.device).items() if not plan.sides or name in plan.sides}
    try:
        _measure_missing(plan, sides, result=result, folder=folder, say=say)
        result.complete = True
    finally:  # an interrupted run keeps what it has
        if result.cells:
            measured = {name for cell in result.cells.values() for name in cell["sides"]}
            notes = {name: side.note for name, side in find_sides(plan.device).items() if name in measured}
            result.summary = {"sides": notes, "lines": summarise(result.cells)}
            save_result(result, folder=folder)
            attention_page(result, folder=folder)
    return result, attention_text(result)


def _measure_missing(
    plan: AttentionPlan, sides: Mapping[str, Side], *, result: BenchResult, folder: Path, say: Say
) -> None:
    cases = plan.cases()
    for number, case in enumerate(cases, start=1):
        if case.key in result.cells and set(sides) <= set(result.cells[case.key]["sides"]):
            say(f"{number}/{len(cases)}  {case.key}: measured before")
            continue
        with_memory = case.length in plan.memory
        cell = measure_cell(case, sides, plan=plan, cells=result.cells, with_memory=with_memory, say=say)
        result.cells[case.key] = cell
        save_result(result, folder=folder)
        shown = {name: record["seconds"] for name, record in cell["sides"].items() if record["seconds"]}
        words = ", ".join(f"{name} {1000 * statistics.median(seconds):.3g} ms" for name, seconds in shown.items())
        say(f"{number}/{len(cases)}  {case.key}: {words}")


def measure_cell(
    case: Case,
    sides: Mapping[str, Side],
    *,
    plan: AttentionPlan,
    cells: Mapping[str, Json],
    with_memory: bool,
    say: Say,
) -> Json:
    """Measure one case: memory first, each side in a process of its own, then time, alternated in this one.

    Args:
        case: The case.
        sides: The sides by name.
        plan: Repetitions, threads and budget.
        cells: What was measured before, from which the cost is predicted.
        with_memory: Whether to measure memory.
        say: Takes a line of progress.

    Returns:
        The cell: for each side its seconds, ratio to dense, peak memory, keys a query, or why it was skipped.
    """
    records: dict[str, Json] = {}
    for name, side in sides.items():
        reason = side.unfit(case) or refusal(side, case, cells=cells, budget=plan.budget)
        records[name] = _empty_record(side, case, skipped=reason)
        if not reason and with_memory:
            fields = {"side": name, **asdict(case)}
            peak = peak_extra_memory(
                f"{find_sides.__module__}:attention_probe", fields, device=case.device, threads=plan.threads
            )
            records[name] |= {"peak_extra_bytes": peak.num_bytes, "memory_by": peak.method, "skipped": peak.problem}
        if records[name]["skipped"]:
            say(f"{case.key}: {name} skipped: {records[name]['skipped']}")
    _time_sides(case, {name: side for name, side in sides.items() if not records[name]["skipped"]},
                plan=plan, cells=cells, records=records, say=say)  # fmt: skip
    return {"length": case.length, "dtype": case.dtype, "direction": case.direction, "sides": records}


def _empty_record(side: Side, case: Case, *, skipped: str) -> Json:
    return {
        "seconds": [], "median_seconds": None, "ratio_to_dense": None, "peak_extra_bytes": None, "memory_by": "",
        "keys_per_query": round(side.keys(case.length), 1), "skipped": skipped,
    }  # fmt: skip


def _time_sides(
    case: Case,
    sides: Mapping[str, Side],
    *,
    plan: AttentionPlan,
    cells: Mapping[str, Json],
    records: dict[str, Json],
    say: Say,
) -> None:
    def give_up(name: str, error: Exception) -> None:
        records[name]["skipped"] = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"{case.key}: {name} failed: {records[name]['skipped']}")

    inputs = make_inputs(case)
    patience = plan.budget.patience_seconds
    runs = alternate(
        {name: make_call(side.make(inputs, case), case) for name, side in sides.items()},
        repetitions=plan.repetitions,
        patience_seconds=patience,
        no_warmup=[name for name, side in sides.items() if (expected_seconds(side, case, cells=cells) or 0) > patience],
        synchronise=synchroniser(case.device),
        on_failure=give_up,
    )
    for name, seconds in runs.items():
        records[name] |= {"seconds": seconds, "median_seconds": statistics.median(seconds)}
        if runs.get(DENSE):
            records[name]["ratio_to_dense"] = ratio_of(runs[DENSE], seconds).record()


def summarise(cells: Mapping[str, Json]) -> Json:
    """Slopes and crossovers of every side, for each dtype and direction that the cells hold.

    Slopes are over 4,096 to 131,072 tokens, or over all lengths where fewer than two of those were measured; the
    record says over which.
    """
    lines = dict.fromkeys((cell["dtype"], cell["direction"]) for cell in cells.values())
    return {f"{dtype}/{direction}": _summarise_line(cells, dtype, direction) for dtype, direction in lines}


def _summarise_line(cells: Mapping[str, Json], dtype: str, direction: str) -> Json:
    line = [cell for cell in cells.values() if (cell["dtype"], cell["direction"]) == (dtype, direction)]
    names = dict.fromkeys(name for cell in line for name in cell["sides"])
    return {name: _summarise_side(line, name) for name in names}


def _summarise_side(line: Sequence[Json], name: str) -> Json:
    records = {cell["length"]: cell["sides"][name] for cell in line if name in cell["sides"]}
    seconds = {n: record["median_seconds"] for n, record in records.items() if record["median_seconds"]}
    memory = {n: record["peak_extra_bytes"] for n, record in records.items() if record["peak_extra_bytes"]}
    ratios = {n: record["ratio_to_dense"]["median"] for n, record in records.items() if record["ratio_to_dense"]}
    crossed = None if name == DENSE else crossover(ratios)
    return {
        "time_slope": _slope(seconds),
        "memory_slope": _slope(memory),
        "crossover_with_dense": None if crossed is None else crossed.record(),
    }


def _slope(values: Mapping[int, float]) -> Json | None:
    in_range = log_log_slope(values, first=SLOPE_FROM, last=SLOPE_TO)
    found = in_range or (log_log_slope(values, first=min(values), last=max(values)) if values else None)
    return None if found is None else found.record()
