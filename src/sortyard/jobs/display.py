"""What a job tells its user while it works."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sortyard.runs.progress import Progress


def _nothing(_: str) -> None:
    return None


def _no_progress(_: str) -> "Progress | None":
    return None


@dataclass(frozen=True)
class Display:
    """Where a job's words go.

    Attributes:
        say: Takes one line about what is being done.
        progress: Makes the display of a training phase from the phase's name; None shows nothing.
        options: Of the command line, by which another process would speak as this one does.
    """

    say: Callable[[str], None] = _nothing
    progress: Callable[[str], "Progress | None"] = _no_progress
    options: tuple[str, ...] = ()
