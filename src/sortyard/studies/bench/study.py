"""The course of every study: take up what an earlier run left, measure what is missing, keep it, show it."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch

from sortyard.studies.bench.results import BenchResult, resume_result, save_result

Json = dict[str, Any]
Cells = Mapping[str, Json]
Say = Callable[[str], None]
T = TypeVar("T")


@runtime_checkable
class WritesPage(Protocol):
    """Writes a result's page into a folder."""

    def __call__(self, result: BenchResult, /, *, folder: Path) -> Path:
        """Write NAME.html and return the file."""


def _stands(_: object, __: Json) -> bool:
    return True


def _alike(_: object) -> float:
    return 1.0


@dataclass(frozen=True)
class Study(Generic[T]):
    """What differs from study to study.

    Attributes:
        begun: The result without cells.
        items: What each cell is about, by the cell's key, in the order of measurement.
        measure: Measures one cell; takes what it is about, the cells before it, and the seconds it should keep to.
        words: What came out of a cell, in a few words.
        summarise: What follows from all cells.
        write_page: Writes the page into a folder.
        write_text: Writes every table as text.
        is_current: Whether an earlier run's cell is what would be measured now.
        weight: How much of a limited time a cell gets, beside the others.
        is_timed: Whether cells hold seconds, so that a busy machine is told of and each cell says how busy it was.
    """

    begun: BenchResult
    items: Mapping[str, T]
    measure: Callable[[T, Cells, float], Json]
    words: Callable[[Json], str]
    summarise: Callable[[Cells], Json]
    write_page: WritesPage
    write_text: Callable[[BenchResult], str]
    is_current: Callable[[T, Json], bool] = _stands
    weight: Callable[[T], float] = _alike
    is_timed: bool = True


def run_study(
    study: Study[T], *, folder: Path, fresh: bool, say: Say, seconds: float = math.inf
) -> tuple[BenchResult, str]:
    """Measure what is missing, writing NAME.json after every cell and NAME.html at the end.

    Args:
        study: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.
        seconds: Time for all missing cells together; when it is over, no cell is begun. One is measured at least.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the folder holds a result of other settings, code or machine.
    """
    torch.set_num_threads(study.begun.threads)
    result = resume_result(study.begun, folder=folder, fresh=fresh)
    if study.is_timed:
        _warn_if_busy(say)
    try:
        left_over = _measure_missing(study, result=result, folder=folder, say=say, seconds=seconds)
        result.complete = not left_over
    finally:  # an interrupted run keeps what it has
        if result.cells:
            result.summary = study.summarise(result.cells)
            save_result(result, folder=folder)
            study.write_page(result, folder=folder)
    text = study.write_text(result)
    if left_over:
        text += (
            f"\n\nThe time is over. Not measured: {left_over} of {len(study.items)} cells; the same command goes on "
            "with them."
        )
    return result, text


def _measure_missing(study: Study[T], *, result: BenchResult, folder: Path, say: Say, seconds: float) -> int:
    """Measure cell by cell, each with its share of the time that is left; return how many are left over."""
    ends = time.monotonic() + seconds
    missing = {
        key: study.weight(item)
        for key, item in study.items.items()
        if key not in result.cells or not study.is_current(item, result.cells[key])
    }
    is_first = True
    for number, (key, item) in enumerate(study.items.items(), start=1):
        place = f"{number}/{len(study.items)}  {key}"
        if key not in missing:
            say(f"{place}: measured before")
            continue
        left = ends - time.monotonic()
        if left <= 0 and not is_first:
            break
        is_first = False
        load = _load()
        cell = study.measure(item, result.cells, left * missing[key] / sum(missing.values()))
        del missing[key]
        result.cells[key] = cell | ({"machine_load": load} if study.is_timed else {})
        save_result(result, folder=folder)
        say(f"{place}: {study.words(cell)}")
    return len(missing)


def _warn_if_busy(say: Say) -> None:
    load, cores = _load(), os.cpu_count() or 1
    if load is not None and load > cores / 2:
        say(f"the machine is busy (load {load:g} on {cores} cores): times will be too long, and ratios uncertain")


def _load() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
