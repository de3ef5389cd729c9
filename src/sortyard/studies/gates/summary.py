"""What follows from the cells: each arm's scores, and what the context gate gains over it."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sortyard.studies.gates.arms import ARMS, CONTEXT, STATIC
from sortyard.studies.gates.latent_mode import NAME as LATENT_MODE
from sortyard.studies.gates.mixed_text import NAME as MIXED_TEXT
from sortyard.studies.gates.pairing import paired_gain

Json = dict[str, Any]
SEED_CLAIM = "without dynamic routing -3.2 %"
# What the project measured before, with other code and the same task: accuracy of the context gate less the static's.
MEASURED_BEFORE = {350: 0.033, 1000: 0.013}


def higher_is_better(task: str) -> bool:
    """Whether a task's score is an accuracy; else it is a loss."""
    return task != MIXED_TEXT


def summarise(cells: Mapping[str, Json], *, measured_before: Mapping[int, float] = MEASURED_BEFORE) -> Json:
    """Sum up every task and budget.

    Args:
        cells: The study's cells.
        measured_before: Gain of the latent-mode task by steps, to compare with.

    Returns:
        The claim; "budgets", a list with an entry for each task and number of steps; "codes", the digests of the code
        that the cells are of.
    """
    pairs = dict.fromkeys((cell["task"], cell["steps"]) for cell in cells.values())
    claims = {(LATENT_MODE, steps): gain for steps, gain in measured_before.items()}
    budgets = [
        _budget(task, steps, list(cells.values()), claimed=claims.get((task, steps))) for task, steps in sorted(pairs)
    ]
    return {
        "claim": f"C6: {SEED_CLAIM}",
        "budgets": budgets,
        "codes": sorted({cell["code"] for cell in cells.values()}),
    }


def _budget(task: str, steps: int, cells: Sequence[Json], *, claimed: float | None) -> Json:
    of_arm = {
        arm: [cell for cell in cells if (cell["task"], cell["steps"], cell["arm"]) == (task, steps, arm)]
        for arm in ARMS
    }
    arms = {arm: _arm(found, of_arm[CONTEXT]) for arm, found in of_arm.items() if found}
    return {"task": task, "steps": steps, "arms": arms, "measured_before": claimed, "finding": _finding(arms, claimed)}


def _arm(cells: Sequence[Json], context: Sequence[Json]) -> Json:
    task, scores = cells[0]["task"], _by_seed(cells)
    values = list(scores.values())
    found: Json = {
        "scores": scores,
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "mutual_information": _mean_of_layers(cells, "mutual_information"),
        "utilisation": _mean_of_layers(cells, "utilisation"),
        "processor_seconds": statistics.fmean(cell["processor_seconds"] for cell in cells),
        **{name: cells[0][name] for name in ("parameters", "active_parameters", "flops_per_step")},
        "gain": None,
        "gain_by_source": {},
    }
    if cells[0]["arm"] != CONTEXT:
        found["gain"] = _gain(context, cells, task=task, source=None)
        found["gain_by_source"] = {
            source: _gain(context, cells, task=task, source=source) for source in cells[0].get("by_source", {})
        }
    return found


def _gain(context: Sequence[Json], other: Sequence[Json], *, task: str, source: str | None) -> Json | None:
    gain = paired_gain(_by_seed(context, source), _by_seed(other, source), higher_is_better=higher_is_better(task))
    return None if gain is None else gain.record()


def _by_seed(cells: Sequence[Json], source: str | None = None) -> dict[str, float]:
    ordered = sorted(cells, key=lambda cell: int(cell["seed"]))
    return {str(cell["seed"]): cell["score"] if source is None else cell["by_source"][source] for cell in ordered}


def _mean_of_layers(cells: Sequence[Json], name: str) -> list[float] | None:
    by_layer = zip(*(cell[name] for cell in cells if name in cell), strict=True)
    return [statistics.fmean(layer) for layer in by_layer] or None


def _finding(arms: Mapping[str, Json], claimed: float | None) -> str:
    """One of: not measured, one seed, no difference shown, context better, static better; and the claim's place."""
    gain = arms.get(STATIC, {}).get("gain")
    if gain is None:
        return "not measured"
    if gain["low"] is None:
        return "one seed only"
    if not gain["excludes_zero"]:
        found = "no difference shown"
    else:
        found = "context is better" if gain["mean"] > 0 else "static is better"
    if claimed is None:
        return found
    place = "below" if claimed < gain["low"] else ("above" if claimed > gain["high"] else "inside")
    return f"{found}; what was measured before lies {place} the interval"
