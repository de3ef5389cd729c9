"""How long the missing cells will take, judged by a few steps of each arm or by cells measured before."""

import time
from collections.abc import Mapping, Sequence

from sortyard.studies.gates.arms import build_arm
from sortyard.studies.gates.tasks import GateTask, Json
from sortyard.studies.gates.training import take_steps

_WARM_UP, _TRIAL_STEPS = 2, 4


def step_seconds(task: GateTask, arm: str, *, cells: Mapping[str, Json]) -> float:
    """Seconds of a training step of an arm.

    Args:
        task: The task.
        arm: A key of `ARMS`.
        cells: What was measured before; its clock is asked first.

    Returns:
        Mean seconds of an earlier cell, or of a few steps that are taken for this.
    """
    known = [cell for cell in cells.values() if (cell["task"], cell["arm"]) == (task.name, arm)]
    if known:
        return float(sum(cell["seconds"] for cell in known) / sum(cell["steps"] for cell in known))
    model, material = build_arm(arm, task.trainee, seed=0), task.material(0)

    def take(steps: int) -> float:
        start = time.perf_counter()
        take_steps(
            model, material.step, trainee=task.trainee, objective=task.objective, steps=steps, total_steps=steps, seed=0
        )
        return time.perf_counter() - start

    take(_WARM_UP)
    return take(_TRIAL_STEPS) / _TRIAL_STEPS


def expected_seconds(task: GateTask, missing: Sequence[tuple[str, int]], *, cells: Mapping[str, Json]) -> float:
    """Seconds that a task's missing cells will take.

    Args:
        task: The task.
        missing: Arm and steps of each.
        cells: What was measured before.

    Returns:
        Their sum, evaluation included.
    """
    seconds = {arm: step_seconds(task, arm, cells=cells) for arm in dict.fromkeys(arm for arm, _ in missing)}
    return sum(seconds[arm] * (steps + task.evaluation_steps) for arm, steps in missing)


def duration_text(seconds: float) -> str:
    """Write a rough time: 40 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
