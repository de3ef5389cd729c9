"""Counting what is skipped in the user's data: how often for which reason, and where first."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OnSkip = Callable[[str, str, int], None]
"""Called with the reason, the file and the row (from 1) of whatever is skipped."""

_PLACES_KEPT = 3


@dataclass
class SkipLog:
    """Skipped rows by reason; its `add` is an `OnSkip`.

    Attributes:
        counts: how many rows were skipped for each reason.
        places: the first few of them as "file:row".
    """

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, file: str, row: int) -> None:
        """Count one skipped row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < _PLACES_KEPT:
            places.append(f"{file}:{row}")

    def joined(self, other: "SkipLog") -> "SkipLog":
        """Return what was skipped here and there together."""
        sums = {
            reason: self.counts.get(reason, 0) + other.counts.get(reason, 0) for reason in self.counts | other.counts
        }
        places = {
            reason: [*self.places.get(reason, ()), *other.places.get(reason, ())][:_PLACES_KEPT]
            for reason in self.places | other.places
        }
        return SkipLog(sums, places)

    @property
    def total(self) -> int:
        """Rows skipped for any reason."""
        return sum(self.counts.values())

    def describe(self) -> str:
        """Return one sentence part per reason, the most frequent first: `3 x empty text (a.jsonl:7, ...)`."""
        parts = []
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            known = self.places.get(reason, [])
            places = ", ".join(known) + (", ..." if count > len(known) else "")
            parts.append(f"{count} x {reason} ({places})" if known else f"{count} x {reason}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for an index file."""
        return {"counts": dict(self.counts), "places": {reason: list(found) for reason, found in self.places.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SkipLog":
        """Rebuild what `to_json` returned."""
        return cls(counts=dict(values["counts"]), places={key: list(found) for key, found in values["places"].items()})


def text_fault(value: Any) -> str | None:
    """Say why a value is no usable text; None where it is."""
    if value is None:
        return "empty text"
    if not isinstance(value, str):
        return f"text is not a string but {type(value).__name__}"
    if not value.strip():
        return "empty text"
    if "\x00" in value:
        return "NUL byte"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate"
    return None
