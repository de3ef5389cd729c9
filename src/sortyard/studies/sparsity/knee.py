"""Where a curve falls by a share of what dense attention reaches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

TOLERANCE = 0.01

Where = Literal["at", "never", "at once"]


@dataclass(frozen=True)
class Knee:
    """The sparsity at which a score has fallen by the tolerance.

    Attributes:
        where: "at" `sparsity`; "never" up to `sparsity`, the sparsest point; "at once", as the first point beyond dense
            attention, at `sparsity`, is already below.
        sparsity: See there.
    """

    where: Where
    sparsity: float

    def record(self) -> dict[str, Any]:
        """Return the knee as JSON values."""
        return asdict(self)


def find_knee(points: Sequence[tuple[float, float]], *, tolerance: float = TOLERANCE) -> Knee | None:
    """Find where a curve first crosses the tolerance, on the straight line between its points.

    Args:
        points: (sparsity, relative fall) of sparse attention, in any order; a fall is positive where the score is worse
            than dense attention's.
        tolerance: The fall that counts.

    Returns:
        The knee, or None without points.
    """
    curve = sorted(points)
    if not curve:
        return None
    before: tuple[float, float] | None = None
    for sparsity, fall in curve:
        if fall >= tolerance:
            if before is None:
                return Knee("at once", sparsity)
            share = (tolerance - before[1]) / (fall - before[1])
            return Knee("at", before[0] + share * (sparsity - before[0]))
        before = (sparsity, fall)
    return Knee("never", curve[-1][0])


def knee_text(knee: dict[str, Any] | None) -> str:
    """Write a knee's record as people read it in a table."""
    if knee is None:
        return "-"
    share = f"{100 * knee['sparsity']:.1f} %"
    return {"at": share, "never": f"not up to {share}", "at once": f"before {share}"}[knee["where"]]
