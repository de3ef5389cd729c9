"""What follows from the cells: each selection's fall by measured sparsity, and its knees."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sortyard.studies.sparsity.cores import DENSE, SELECTIONS
from sortyard.studies.sparsity.knee import TOLERANCE, find_knee
from sortyard.studies.sparsity.plan import ADAPTED, AS_IS, MEASURES, SETTING, TASK

Json = dict[str, Any]
SEED_CLAIM = "the best sparsity is 55 to 60 %, and quality falls beyond 70 %"
AIM = "at most 1 % relative loss at 95 % for n of at least 2,048"


def summarise(cells: Mapping[str, Json]) -> Json:
    """Sum up every measure and length.

    Args:
        cells: The study's cells.

    Returns:
        The claim, the aim and "panels": a list with an entry for each measure and length that has dense attention's
        score and others, with each selection's points and knees.
    """
    lengths = sorted({cell["length"] for cell in cells.values()})
    sparsities = {
        (cell["length"], cell["selection"], cell["sparsity"]): cell["measured"]
        for cell in cells.values()
        if cell["measure"] == SETTING
    }
    panels = []
    for measure in (AS_IS, ADAPTED, TASK):
        for length in lengths:
            found = [cell for cell in cells.values() if (cell["measure"], cell["length"]) == (measure, length)]
            dense = {cell["seed"]: cell["score"] for cell in found if cell["selection"] == DENSE}
            if dense and len(found) > len(dense):  # something to compare with it
                panels.append(_panel(measure, length, found, dense=dense, sparsities=sparsities))
    return {"claim": f"C7: {SEED_CLAIM}", "aim": AIM, "tolerance": TOLERANCE, "panels": panels}


def _panel(
    measure: str, length: int, cells: Sequence[Json], *, dense: Mapping[int, float], sparsities: Mapping[Any, float]
) -> Json:
    selections: Json = {}
    for name in SELECTIONS:
        own = [cell for cell in cells if cell["selection"] == name and cell["seed"] in dense]
        asked = sorted({cell["sparsity"] for cell in own})
        points = [
            _point(measure, [cell for cell in own if cell["sparsity"] == share], dense=dense)
            | {"asked": share, "sparsity": sparsities[length, name, share]}
            for share in asked
        ]
        if points:
            selections[name] = {"points": points, **_knees(points)}
    return {
        "measure": measure,
        "what": MEASURES[measure],
        "length": length,
        "dense": {"scores": {str(seed): score for seed, score in sorted(dense.items())},
                  "mean": statistics.fmean(dense.values())},
        "selections": selections,
    }  # fmt: skip


def _point(measure: str, cells: Sequence[Json], *, dense: Mapping[int, float]) -> Json:
    """The fall of one selection at one sparsity: relative to dense attention with the same seed."""
    sign = -1 if measure == TASK else 1
    falls = {
        str(cell["seed"]): sign * (cell["score"] / dense[cell["seed"]] - 1) + 0.0 if dense[cell["seed"]] else 0.0
        for cell in sorted(cells, key=lambda cell: int(cell["seed"]))
    }
    return {
        "score": statistics.fmean(cell["score"] for cell in cells),
        "fall": statistics.fmean(falls.values()),
        "low": min(falls.values()),
        "high": max(falls.values()),
        "fall_by_seed": falls,
    }


def _knees(points: Sequence[Json]) -> Json:
    """The knee of the mean, and of every seed that has all the points."""
    mean = find_knee([(point["sparsity"], point["fall"]) for point in points])
    shared = set.intersection(*(set(point["fall_by_seed"]) for point in points))
    by_seed = {
        seed: find_knee([(point["sparsity"], point["fall_by_seed"][seed]) for point in points])
        for seed in sorted(shared, key=int)
    }
    return {
        "knee": None if mean is None else mean.record(),
        "knee_by_seed": {seed: None if knee is None else knee.record() for seed, knee in by_seed.items()},
    }
