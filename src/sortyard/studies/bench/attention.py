"""`bench attention`: bucket attention beside dense attention and other LSH attention, over lengths."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sortyard.studies.bench.attention_page import attention_page, attention_text
from sortyard.studies.bench.budgets import Budget
from sortyard.studies.bench.cases import Case, cell_cases, make_call, make_inputs
from sortyard.studies.bench.comparison import Terms, compare_sides, notes_of, sides_study
from sortyard.studies.bench.fits import crossover, log_log_slope
from sortyard.studies.bench.peers import PACKAGES
from sortyard.studies.bench.results import BenchResult, bench_command, new_result
from sortyard.studies.bench.runner import Call, ratio_of
from sortyard.studies.bench.sides import DENSE, Side, attention_probe, find_sides
from sortyard.studies.bench.study import Say, run_study

Json = dict[str, Any]
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
        minutes: Time for the whole; infinite where it does not matter.
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
    minutes: float

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
            "--call-seconds": self.budget.call_seconds,
            "--seed": self.seed,
            "--device": self.device,
            "--minutes": self.minutes,
            "--sides": ",".join(self.sides),
        }
        return bench_command("attention", words)

    def settings(self) -> Json:
        """Return what changes the value of a cell; the rest only chooses what there is."""
        return {
            "batch": 1,
            "heads": self.heads,
            "head_width": self.head_width,
            "repetitions": self.repetitions,
            "device": self.device,
            **asdict(self.budget),
        }

    def terms(self, *, seconds: float) -> Terms:
        """Return how sides are compared in a cell that should keep to so many seconds."""
        probe = f"{attention_probe.__module__}:{attention_probe.__name__}"
        return Terms(
            repetitions=self.repetitions, threads=self.threads, budget=self.budget, probe=probe, memory=self.memory,
            seconds=seconds,
        )  # fmt: skip

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
    begun = new_result(
        "attention", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device=plan.device,
        settings=plan.settings(), packages=PACKAGES,
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
        summarise=lambda cells: {"sides": notes_of(everyone, cells), "lines": summarise(cells)},
        write_page=attention_page,
        write_text=attention_text,
    )
    return run_study(study, folder=folder, fresh=fresh, say=say, seconds=60 * plan.minutes)


def measure_cell(
    case: Case,
    sides: Mapping[str, Side],
    *,
    plan: AttentionPlan,
    cells: Mapping[str, Json],
    seconds: float,
    say: Say,
) -> Json:
    """Measure one case: memory first, each side in a process of its own, then time, alternated in this one.

    Args:
        case: The case.
        sides: The sides by name.
        plan: Repetitions, threads, budget and where to measure memory.
        cells: What was measured before, from which the cost is predicted.
        seconds: Time that the cell should keep to.
        say: Takes a line of progress.

    Returns:
        The cell: for each side its seconds, ratio to dense, peak memory, keys a query, or why it was skipped.
    """

    def calls(names: Collection[str]) -> dict[str, Call]:
        inputs = make_inputs(case)
        return {name: make_call(sides[name].make(inputs, case), direction=case.direction) for name in names}

    records = compare_sides(case, sides, calls=calls, terms=plan.terms(seconds=seconds), cells=cells, say=say)
    dense = records[DENSE]["seconds"]
    for record in records.values():
        own = record["seconds"]
        record["ratio_to_dense"] = ratio_of(dense, own).record() if dense and own else None
    return {"length": case.length, "dtype": case.dtype, "direction": case.direction, "sides": records}


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
