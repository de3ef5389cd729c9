"""`study twin`: a sparse model beside dense ones of equal active and of equal total parameters (claims C4 and C11)."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sortyard.studies.bench.results import BenchResult
from sortyard.studies.gates.pairing import paired_gain
from sortyard.studies.trained.arms import DENSE_ACTIVE, DENSE_TOTAL, OURS, twin_arms
from sortyard.studies.trained.comparing import at_equal_cost, efficiency
from sortyard.studies.trained.curves import Curve, processor_seconds
from sortyard.studies.trained.study import Say, TrainedPlan, TrainedStudy, curves_of, run_trained, scores_of
from sortyard.studies.trained.twin_page import twin_page, twin_text

Json = dict[str, Any]
WHAT = (
    "held-out loss of a sparse model and of its dense twins after equal training on equal text in equal order, and "
    "what each spends until an equal loss; paired over seeds, with 95 % intervals"
)


def run_twin(plan: TrainedPlan, *, folder: Path, work: Path, say: Say) -> tuple[BenchResult, str]:
    """Train the recipe and its twins, as far as they are missing, and compare what is there.

    Args:
        plan: Recipe, text and seeds.
        folder: An existing folder for twin.json and twin.html.
        work: Folder of the runs.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the recipe has no experts, or text, recipe or folder cannot be used.
    """
    study = TrainedStudy(
        name="twin", what=WHAT, arms=twin_arms(plan.recipe), summarise=summarise, write_page=twin_page,
        write_text=twin_text,
    )  # fmt: skip
    return run_trained(study, plan, folder=folder, work=work, say=say)


def summarise(cells: Mapping[str, Json]) -> Json:
    """What follows from the runs that are finished.

    Args:
        cells: The study's cells.

    Returns:
        "arms": sizes, losses, costs, scores, and how far from equal a twin's size is; "gains": how much lower ours is
        than each twin at equal cost, by kind of cost; "scores": the gain on the task; "efficiency": over the twin of
        equal active parameters.
    """
    curves = {arm: curves_of(cells, arm) for arm in (OURS, DENSE_ACTIVE, DENSE_TOTAL)}
    scores = {arm: scores_of(cells, arm) for arm in curves}
    twins = [arm for arm in (DENSE_ACTIVE, DENSE_TOTAL) if curves[arm].keys() & curves[OURS].keys()]
    return {
        "arms": {arm: _arm(found, scores[arm]) | {"gap": _gap(arm, curves)} for arm, found in curves.items() if found},
        "gains": {arm: at_equal_cost(curves[OURS], curves[arm]) for arm in twins},
        "scores": {arm: _score_gain(scores[OURS], scores[arm]) for arm in twins if scores[arm]},
        "efficiency": efficiency(curves[OURS], curves[DENSE_ACTIVE]) if DENSE_ACTIVE in twins else {},
    }


def _arm(found: Mapping[str, Any], scores: Mapping[str, float]) -> Json:
    curves = list(found.values())
    return {
        "parameters": curves[0].parameters,
        "active_parameters": curves[0].active_parameters,
        "sparsity": statistics.fmean(curve.sparsity for curve in curves),
        "losses": {seed: curve.losses[-1] for seed, curve in found.items()},
        "flops": curves[0].flops[-1],
        "processor_seconds": processor_seconds(curves),
        "scores": dict(scores),
    }


def _gap(arm: str, curves: Mapping[str, Mapping[str, Curve]]) -> float | None:
    """How far a twin's parameters are from those that it should equal, as a share; None where there is no such twin."""
    if arm == OURS or not curves[OURS]:
        return None
    ours, twin = (next(iter(curves[name].values())) for name in (OURS, arm))
    wanted = ours.active_parameters if arm == DENSE_ACTIVE else ours.parameters
    return twin.parameters / wanted - 1


def _score_gain(ours: Mapping[str, float], other: Mapping[str, float]) -> Json | None:
    gain = paired_gain(ours, other, higher_is_better=True)
    return None if gain is None else gain.record()
