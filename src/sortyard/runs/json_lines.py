"""Line-by-line JSON records that survive a kill in the middle of a line."""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sortyard.durable import replace_bytes
from sortyard.errors import InputError

_appending = threading.Lock()  # a checkpoint's thread notes when it is done


def plain(value: Any) -> Any:
    """A value that JSON can hold: numbers that are not finite become null, paths become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record, in place of a last line that a kill cut short; it is in the file when the call returns."""
    line = json.dumps(plain(record), allow_nan=False)
    with _appending, path.open("a+b") as file:
        _drop_partial_line(file)
        file.write(line.encode() + b"\n")


def _drop_partial_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line that a kill cut short is left out, a missing file holds none.

    Raises:
        InputError: a line in the middle is not a JSON object.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].split("\n")
    return [_parse(line, path=path, number=number) for number, line in enumerate(lines, start=1) if line]


def _parse(line: str, *, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not a JSON object ({error}); remove that line") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: expected a JSON object; remove that line")
    return record


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the records that are not wanted, and a last line that a kill cut short."""
    if not path.exists():
        return
    lines = [json.dumps(record) + "\n" for record in read_lines(path) if wanted(record)]
    replace_bytes(path, "".join(lines).encode())
