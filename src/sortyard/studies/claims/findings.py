"""What a claim's measurement comes to."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]
Verdict = Literal["holds", "holds in part", "does not hold", "not measured here"]
HOLDS: Verdict = "holds"
IN_PART: Verdict = "holds in part"
FAILS: Verdict = "does not hold"
MISSING: Verdict = "not measured here"


@dataclass(frozen=True)
class Finding:
    """One row of the ledger.

    Attributes:
        verdict: Whether the claim holds as measured here.
        measured: The figures, in a few words.
        spread: Over seeds or repetitions, and how many; "" where there is one.
        controls: What stands beside it, a phrase each.
        note: What the figures do not say by themselves.
        share: Measured over claimed, for the picture; None where there is no such number.
        share_low: The lower end of its interval.
        share_high: The upper end.
        values: The numbers.
    """

    verdict: Verdict
    measured: str
    spread: str = ""
    controls: tuple[str, ...] = ()
    note: str = ""
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    values: Json = field(default_factory=dict)

    def record(self) -> Json:
        """Return it as JSON values."""
        return asdict(self)


Reader = Callable[[Path], Finding]


def missing(reason: str) -> Finding:
    """A claim that was not measured, and why."""
    return Finding(MISSING, "", note=reason)


def read_json(path: Path) -> Json | None:
    """Read a step's result; None where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def in_parts(parts: Sequence[bool]) -> Verdict:
    """The verdict of a claim that is measured at several places."""
    return HOLDS if all(parts) else IN_PART if any(parts) else FAILS


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def percent(share: float, *, digits: int = 0, sign: bool = False) -> str:
    """Write a share in per cent."""
    text = f"{100 * share:{'+' if sign else ''}.{digits}f}"
    return f"{text.replace('-0', '0', 1) if float(text) == 0 else text} %"


def interval(gain: Mapping[str, Any] | None, *, scale: float = 100, digits: int = 1) -> str:
    """Write the interval of a paired gain."""
    if gain is None or gain["low"] is None:
        return "one seed"
    low, high = (scale * gain[end] for end in ("low", "high"))
    return f"{low:+.{digits}f} to {high:+.{digits}f} ({gain['seeds']} seeds)"
