"""What follows from the curves: differences at equal cost, and the cost of an equal loss, paired over seeds."""

import statistics
from collections.abc import Mapping
from typing import Any

from sortyard.studies.gates.pairing import paired_gain
from sortyard.studies.trained.curves import AXES, Axis, Curve, loss_at, reached

Json = dict[str, Any]
Curves = Mapping[str, Curve]  # of one arm, by seed


def at_equal_cost(ours: Curves, other: Curves) -> Json:
    """How much lower our loss is, after as many steps, as much arithmetic, as much time: the smaller of the two ends.

    Args:
        ours: Our curves by seed.
        other: Another arm's.

    Returns:
        The paired gain in nats by kind of cost, positive means that ours is lower; and "shares": which part of its own
        cost each side had spent there, mean over the seeds. Below 1 its learning rate had not fallen to the end yet.
    """
    return {axis: _gain(ours, other, axis=axis) for axis in AXES}


def _gain(ours: Curves, other: Curves, *, axis: Axis) -> Json | None:
    pairs: dict[str, tuple[float, float]] = {}
    shares: list[tuple[float, float]] = []
    for seed in _shared(ours, other, axis=axis):
        ends = (ours[seed].axis(axis)[-1], other[seed].axis(axis)[-1])
        cost = min(ends)
        found = [loss_at(curve.axis(axis), curve.losses, cost=cost) for curve in (ours[seed], other[seed])]
        if found[0] is not None and found[1] is not None:
            pairs[seed] = (found[0], found[1])
            shares.append((cost / ends[0], cost / ends[1]))
    own, base = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
    gain = paired_gain(own, base, higher_is_better=False)
    if gain is None:
        return None
    own_share, other_share = (statistics.fmean(values) for values in zip(*shares, strict=True))
    return gain.record() | {"shares": {"ours": own_share, "other": other_share}}


def efficiency(ours: Curves, twin: Curves) -> Json:
    """Training efficiency: what the twin spends until its last loss, over what ours spends until the same, less 1.

    Args:
        ours: Our curves by seed.
        twin: The twin's.

    Returns:
        By kind of cost: "by_seed" with None where ours never gets there, "gain" with its interval where all do, else
        "at_most", which the mean cannot exceed: a seed that does not get there would need more than it spent.
    """
    found: Json = {}
    for axis in AXES:
        by_seed: dict[str, float | None] = {}
        most: list[float] = []
        for seed in _shared(ours, twin, axis=axis):
            spent, target = twin[seed].axis(axis)[-1], twin[seed].losses[-1]
            cost = reached(ours[seed].axis(axis), ours[seed].losses, target=target)
            by_seed[seed] = None if cost is None else spent / cost - 1
            most.append(spent / (ours[seed].axis(axis)[-1] if cost is None else cost) - 1)
        values = {seed: value for seed, value in by_seed.items() if value is not None}
        gain = paired_gain(values, dict.fromkeys(values, 0.0), higher_is_better=True)
        are_all = len(values) == len(by_seed)
        found[axis] = {
            "by_seed": by_seed,
            "gain": gain.record() if gain is not None and are_all else None,
            "at_most": None if are_all else statistics.fmean(most),
        }
    return found


def _shared(ours: Curves, other: Curves, *, axis: Axis) -> list[str]:
    """The seeds of which both sides know the cost."""
    return sorted(
        (seed for seed in ours.keys() & other.keys() if ours[seed].axis(axis) and other[seed].axis(axis)), key=int
    )
