"""Where a benchmark stops: what a cell will cost, judged by the lengths before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from sortyard.studies.bench.cases import synchroniser
from sortyard.studies.bench.competitors import Competitor, SizedCase
from sortyard.studies.bench.runner import alternate
from sortyard.studies.bench.tables import seconds_text

Json = dict[str, Any]
C = TypeVar("C", bound=SizedCase)
_TRIAL_LENGTH = 2048
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Budget:
    """Limits of one side in one cell.

    Attributes:
        call_seconds: A call that is predicted to take longer is skipped.
        patience_seconds: A side whose measured runs add up to more is not repeated.
        memory_share: A call that is predicted to need more than this share of the free memory is skipped.
    """

    call_seconds: float = 120.0
    patience_seconds: float = 10.0
    memory_share: float = 0.6


def refusal(side: Competitor[C], case: C, *, cells: Mapping[str, Json], budget: Budget) -> str:
    """Why a side is not run in a case: its predicted time or memory is over the budget; empty where it is run."""
    num_bytes = _expected_bytes(side, case, cells=cells)
    free = free_bytes(case.device)
    if free is not None and num_bytes > budget.memory_share * free:
        share = f"{budget.memory_share:.0%} of the free {free / 1e9:.1f} GB"
        return f"predicted to need {num_bytes / 1e9:.1f} GB, more than {share}"
    seconds = expected_seconds(side, case, cells=cells)
    if seconds is None and case.length > 2 * _TRIAL_LENGTH:
        trial = _trial_seconds(side, case.at(_TRIAL_LENGTH))
        seconds = None if trial is None else trial * (case.length / _TRIAL_LENGTH) ** side.time_power
    if seconds is not None and seconds > budget.call_seconds:
        return f"predicted to take {seconds_text(seconds)} a call, more than {budget.call_seconds:.0f} s"
    return ""


def expected_seconds(side: Competitor[C], case: C, *, cells: Mapping[str, Json]) -> float | None:
    """Seconds that a call will take, judged by the longest of the shorter lengths that were measured; None without."""
    before = _before(side, case, cells=cells, field="median_seconds")
    if before is None:
        return None
    length, seconds = before
    return float(seconds * (case.length / length) ** side.time_power)


def free_bytes(device: str) -> int | None:
    """Memory that is free on a device, in bytes; None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.exists():
        return None
    lines = _MEMINFO.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _expected_bytes(side: Competitor[C], case: C, *, cells: Mapping[str, Json]) -> float:
    before = _before(side, case, cells=cells, field="peak_extra_bytes")
    least = side.least_bytes(case)
    if before is None:
        return least
    length, num_bytes = before
    return float(max(least, num_bytes * (case.length / length) ** side.memory_power))


def _before(side: Competitor[C], case: C, *, cells: Mapping[str, Json], field: str) -> tuple[int, float] | None:
    shorter = [
        (cell["length"], cell["sides"][side.name][field])
        for key, cell in cells.items()
        if key.rpartition("/")[0] == case.line
        and cell["length"] < case.length
        and cell["sides"].get(side.name, {}).get(field)
    ]
    return max(shorter, default=None)


def _trial_seconds(side: Competitor[C], case: C) -> float | None:
    """Seconds of one call; None where it fails, which the cell's own measurement then tells."""
    found = alternate(
        {side.name: side.call(case)},
        repetitions=1,
        synchronise=synchroniser(case.device),
        on_failure=lambda *_: None,
    )
    return found[side.name][0] if found else None
