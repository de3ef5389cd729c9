"""Reading a part of large files: stretches spread evenly over them, and nothing of what lies between."""

from dataclasses import dataclass, replace
from typing import BinaryIO

_REST_BYTES = 65_536


@dataclass(frozen=True)
class Stretches:
    """Stretches of like width, spread evenly over the bytes of several files as if these were one.

    Attributes:
        share: the part of all bytes that lies in a stretch; above 0, below 1.
        width: bytes of a stretch.
        begin: bytes of the files before the one at hand.
    """

    share: float
    width: int
    begin: int = 0

    def after(self, num_bytes: int) -> "Stretches":
        """Return the stretches of the file that follows one of so many bytes."""
        return replace(self, begin=self.begin + num_bytes)

    def next(self, place: int) -> int:
        """Return the first place in a stretch from a place of the file on; it may lie beyond the file's end."""
        period = round(self.width / self.share)
        number, into = divmod(self.begin + place, period)
        return place if into < self.width else (number + 1) * period - self.begin

    def covers(self, place: int) -> bool:
        """Whether a place of the file lies in a stretch."""
        return self.next(place) == place


class StretchedFile:
    """A file of lines as if it held its first line and those that begin in a stretch."""

    def __init__(self, file: BinaryIO, stretches: Stretches) -> None:
        self._file = file
        self._stretches = stretches

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or as many of its bytes; nothing at the end."""
        while (place := self._file.tell()) and (wanted := self._stretches.next(place)) > place:
            self._file.seek(wanted - 1)  # a line that begins right there is whole
            while (rest := self._file.readline(_REST_BYTES)) and not rest.endswith(b"\n"):
                pass
            if not rest:
                return b""
        return self._file.readline(limit)
