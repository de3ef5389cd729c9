"""Turning what the user calls a source (file, folder, glob, hub name) into a list of files."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sortyard.data.options import TextFormat
from sortyard.errors import InputError

FORMATS: dict[str, TextFormat] = {
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Local files in reading order, or the name of a hub data set.

    Attributes:
        files: the files.
        hub_name: the data set; None for files.
        left_out: what else a folder holds: the reason why it is not read, and its path.
    """

    files: tuple[Path, ...] = ()
    hub_name: str | None = None
    left_out: tuple[tuple[str, Path], ...] = ()


def locate(source: str | Path) -> Source:
    """Find the files that a source stands for.

    Args:
        source: a file, a folder (all files of known extensions in it, recursively, sorted by path; links are followed,
            hidden files are not read), a glob pattern, or, where no such path exists, a name like `name` or
            `owner/name` of a hub data set.

    Raises:
        InputError: there is no such path, it holds no file that can be read, and it is no hub name either.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Source(files=(path,))
    if path.is_dir():
        return _folder_source(path)
    if glob.has_magic(str(path)):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not files:
            raise InputError(f"{source}: no file matches this pattern")
        return Source(files=tuple(files))
    if _HUB_NAME.fullmatch(str(source)) and path.suffix.lower() not in FORMATS:
        return Source(hub_name=str(source))
    if path.exists():
        raise InputError(f"{source}: is neither a regular file nor a folder")
    raise InputError(f"{source}: there is no such file or folder{_did_you_mean(path)}")


def format_of(path: Path, format: TextFormat) -> TextFormat:  # noqa: A002
    """Return the format of a file: the one asked for, or the one its extension says.

    Raises:
        InputError: the format is to be found from the extension, and that is not a known one.
    """
    if format != "auto":
        return format
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        known = ", ".join(sorted(FORMATS))
        raise InputError(f"{path}: unknown extension {path.suffix!r}; known are {known}; or set the field format")
    return found


def missing_column(file: str, wanted: str, found: list[str], field: str) -> InputError:
    """Describe a column that a file lacks, with the columns it has."""
    close = get_close_matches(wanted, found, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    columns = ", ".join(map(repr, found)) or "none"
    return InputError(f"{file}: there is no column {wanted!r}; it has {columns}{hint} (set {field})")


def _folder_source(folder: Path) -> Source:
    files, left_out = [], []
    for path, fault in sorted(_walk(folder)):
        if fault:
            left_out.append((fault, path))
        elif path.suffix.lower() not in FORMATS:
            left_out.append(("file of unknown extension", path))
        elif not path.is_file():
            left_out.append(("broken link or no regular file", path))
        else:
            files.append(path)
    if not files:
        raise InputError(f"{folder}: the folder holds no file with a known extension ({', '.join(sorted(FORMATS))})")
    return Source(files=tuple(files), left_out=tuple(left_out))


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a folder holds that is no folder, and what is wrong with it, following links.

    A folder is read once, by its own path where that lies below, so links in a circle come to an end.
    """
    seen: set[tuple[int, int]] = set()
    closed: list[Path] = []
    waiting = [str(folder)]
    while waiting:
        for root, names, files in os.walk(waiting.pop(0), onerror=lambda error: closed.append(Path(error.filename))):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in seen:
                names.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            names[:] = sorted(name for name in names if not name.startswith("."))
            paths = [os.path.join(root, name) for name in names]
            waiting += filter(os.path.islink, paths)
            yield from ((Path(root, name), "") for name in files if not name.startswith("."))
    yield from ((path, "folder that cannot be read") for path in closed)


def _did_you_mean(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir() if entry.exists()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
