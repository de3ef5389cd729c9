"""What follows from a row of measurements over lengths: slopes on double logarithmic paper, and crossovers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Slope:
    """Exponent p of y = c n^p, by least squares of log y on log n.

    Attributes:
        exponent: The exponent.
        first: Shortest length that took part.
        last: Longest length that took part.
        points: Lengths that took part.
    """

    exponent: float
    first: int
    last: int
    points: int

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Crossover:
    """From which length on a side is at least as fast as another.

    Attributes:
        relation: "at" (between two measured lengths), "below" (it is at the shortest measured length already) or
            "above" (it is not yet at the longest).
        length: The length that the relation is to.
    """

    relation: str
    length: float

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Write the crossover for a table: 1,420, < 512, > 131,072."""
        sign = {"at": "", "below": "< ", "above": "> "}[self.relation]
        return f"{sign}{self.length:,.0f}"


def log_log_slope(values: Mapping[int, float], *, first: int, last: int) -> Slope | None:
    """Fit the exponent over a range of lengths.

    Args:
        values: A positive value for each length; values of 0 are left out, they have no logarithm.
        first: Shortest length to use.
        last: Longest length to use.

    Returns:
        The slope; None with fewer than two lengths in the range.
    """
    used = {n: y for n, y in sorted(values.items()) if first <= n <= last and y > 0}
    if len(used) < 2:
        return None
    exponent = np.polyfit(np.log(list(used)), np.log(list(used.values())), 1)[0]
    return Slope(float(exponent), min(used), max(used), len(used))


def crossover(ratios: Mapping[int, float]) -> Crossover | None:
    """Where a side's ratio to another passes 1 for the last time, on the straight line between logarithms.

    Args:
        ratios: How many times faster the side is, by length.

    Returns:
        The crossover; None without any ratio.
    """
    if not ratios:
        return None
    lengths = sorted(ratios)
    slower = [i for i, length in enumerate(lengths) if ratios[length] < 1]
    if not slower:
        return Crossover("below", lengths[0])
    if slower[-1] == len(lengths) - 1:
        return Crossover("above", lengths[-1])
    left, right = lengths[slower[-1]], lengths[slower[-1] + 1]
    y_left, y_right = math.log(ratios[left]), math.log(ratios[right])
    share = -y_left / (y_right - y_left)
    return Crossover("at", math.exp(math.log(left) + share * (math.log(right) - math.log(left))))
