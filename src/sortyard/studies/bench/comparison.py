"""The sides of one cell: who may run, everyone's memory in a process of its own, then seconds in turns."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sortyard.studies.bench.budgets import Budget, expected_seconds, refusal
from sortyard.studies.bench.cases import synchroniser
from sortyard.studies.bench.competitors import Competitor, SizedCase
from sortyard.studies.bench.memory import peak_extra_memory
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.runner import Call, Clock, alternate, reason_of, wall_clock
from sortyard.studies.bench.study import Cells, Say, Study, WritesPage
from sortyard.studies.bench.tables import seconds_text

Json = dict[str, Any]
C = TypeVar("C", bound=SizedCase)
S = TypeVar("S")
_START_SECONDS = 120.0  # for imports and compilation in a memory measurement's child, on a busy machine


@dataclass(frozen=True)
class Terms:
    """How sides are compared.

    Attributes:
        repetitions: Measured rounds; a slow side has fewer.
        threads: Threads of torch.
        budget: Where a side stops.
        probe: "module:function" that the child of a memory measurement calls with a case's fields and `side`.
        memory: Lengths at which memory is measured.
        seconds: Time of a cell, memory included: a round that would end later does not begin.
        warmup: Rounds that run first and do not count.
        clock: Tells the seconds of a call.
    """

    repetitions: int
    threads: int
    budget: Budget
    probe: str
    memory: Collection[int]
    seconds: float
    warmup: int = 1
    clock: Clock = wall_clock


def compare_sides(
    case: C,
    sides: Mapping[str, Competitor[C]],
    *,
    calls: Callable[[Collection[str]], Mapping[str, Call]],
    terms: Terms,
    cells: Cells,
    say: Say,
) -> dict[str, Json]:
    """Measure every side that may run in a case.

    Args:
        case: The case.
        sides: The sides by name.
        calls: Makes the calls of the named sides, on inputs that they share.
        terms: How they are compared.
        cells: What was measured before, from which the cost is predicted.
        say: Takes a line of progress.

    Returns:
        For each side its seconds, their median, its peak extra memory, or why it was skipped.
    """
    ends = time.monotonic() + terms.seconds
    earlier = cells[case.key]["sides"] if case.key in cells else {}
    records: dict[str, Json] = {}
    for name, side in sides.items():
        records[name] = _record(case, side, terms=terms, cells=cells, earlier=earlier.get(name, {}))
        if records[name]["skipped"]:
            say(f"{case.key}: {name} skipped: {records[name]['skipped']}")
    rest = replace(terms, seconds=ends - time.monotonic())
    _time_sides(case, sides, calls=calls, terms=rest, cells=cells, records=records, say=say)
    return records


def sides_study(
    begun: BenchResult,
    *,
    cases: Sequence[C],
    sides: Callable[[C], Mapping[str, S]],
    asked: Collection[str],
    memory: Collection[int],
    measure: Callable[[C, Mapping[str, S], Cells, float], Json],
    summarise: Callable[[Cells], Json],
    write_page: WritesPage,
    write_text: Callable[[BenchResult], str],
) -> Study[C]:
    """Put together the study whose cells hold several sides of a case.

    Args:
        begun: The result without cells.
        cases: The cases, in the order of measurement.
        sides: All sides of a case by name.
        asked: The names to measure; empty = all. Sides that an earlier run measured in a cell are measured along.
        memory: Lengths at which memory is wanted.
        measure: Measures a case with the given sides, beside the cells before it, in so many seconds.
        summarise: What follows from all cells.
        write_page: Writes the page into a folder.
        write_text: Writes every table as text.

    Returns:
        The study.
    """

    def names(case: C) -> tuple[str, ...]:
        return tuple(name for name in sides(case) if not asked or name in asked)

    return Study(
        begun=begun,
        items={case.key: case for case in cases},
        measure=lambda case, cells, seconds: measure(
            case, with_earlier(names(case), sides(case), key=case.key, cells=cells), cells, seconds
        ),
        words=lambda cell: seconds_by_side(cell["sides"]),
        summarise=summarise,
        write_page=write_page,
        write_text=write_text,
        is_current=lambda case, cell: is_measured(case, names(case), cell=cell, memory=memory),
        weight=lambda case: math.sqrt(case.length),
    )


def with_earlier(names: Collection[str], sides: Mapping[str, S], *, key: str, cells: Cells) -> dict[str, S]:
    """Return the named sides and those that an earlier run measured in the cell of a key, so that none is lost."""
    earlier = cells[key]["sides"] if key in cells else {}
    return {name: side for name, side in sides.items() if name in names or name in earlier}


def is_measured(case: C, names: Collection[str], *, cell: Json, memory: Collection[int]) -> bool:
    """Say whether an earlier run's cell has every side, with its memory where that is wanted now."""
    records = [cell["sides"].get(name) for name in names]
    wants_memory = case.length in memory
    return all(
        record is not None and (record["skipped"] or not wants_memory or record["peak_extra_bytes"] is not None)
        for record in records
    )


def notes_of(sides: Mapping[str, Competitor[C]], cells: Cells) -> dict[str, str]:
    """What the sides are, in words, of all that some cell names."""
    named = {name for cell in cells.values() for name in cell["sides"]}
    return {name: side.note for name, side in sides.items() if name in named}


def seconds_by_side(records: Mapping[str, Json]) -> str:
    """Write the median seconds of every side that was timed."""
    timed = {name: record["median_seconds"] for name, record in records.items() if record["seconds"]}
    return ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in timed.items())


def _record(case: C, side: Competitor[C], *, terms: Terms, cells: Cells, earlier: Json) -> Json:
    reason = side.unfit(case) or refusal(side, case, cells=cells, budget=terms.budget)
    record: Json = {
        "seconds": [], "median_seconds": None, "peak_extra_bytes": None, "memory_by": "", **side.facts(case),
        "skipped": reason,
    }  # fmt: skip
    if not reason and earlier.get("peak_extra_bytes"):  # which time does not change, unlike seconds
        record |= {field: earlier[field] for field in ("peak_extra_bytes", "memory_by")}
    elif not reason and case.length in terms.memory:
        peak = peak_extra_memory(
            terms.probe, {"side": side.name, **case.fields()}, device=case.device, threads=terms.threads,
            timeout_seconds=_START_SECONDS + 3 * terms.budget.call_seconds,
        )  # fmt: skip
        record |= {"peak_extra_bytes": peak.num_bytes, "memory_by": peak.method, "skipped": peak.problem}
    return record


def _time_sides(
    case: C,
    sides: Mapping[str, Competitor[C]],
    *,
    calls: Callable[[Collection[str]], Mapping[str, Call]],
    terms: Terms,
    cells: Cells,
    records: dict[str, Json],
    say: Say,
) -> None:
    def give_up(name: str, error: Exception) -> None:
        records[name]["skipped"] = reason_of(error)
        say(f"{case.key}: {name} failed: {records[name]['skipped']}")

    patience = terms.budget.patience_seconds
    fit = {name: side for name, side in sides.items() if not records[name]["skipped"]}
    slow = [
        name
        for name, side in fit.items()
        if not side.needs_warmup and (expected_seconds(side, case, cells=cells) or 0) > patience
    ]
    runs = alternate(
        calls(fit),
        repetitions=terms.repetitions,
        warmup=terms.warmup,
        clock=terms.clock,
        patience_seconds=patience,
        seconds=terms.seconds,
        no_warmup=slow,
        synchronise=synchroniser(case.device),
        on_failure=give_up,
    )
    for name, seconds in runs.items():
        records[name] |= {"seconds": seconds, "median_seconds": statistics.median(seconds)}
