"""Turning what the user calls a source (file, folder, glob, hub name) into a list of files."""

import glob
import re
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
    """Local files in reading order, or the name of a hub data set."""

    files: tuple[Path, ...] = ()
    hub_name: str | None = None


def locate(source: str | Path) -> Source:
    """Find the files that a source stands for.

    Args:
        source: a file, a folder (all files of known extensions in it, recursively, sorted by path), a glob pattern, or,
            where no such path exists, a name like `name` or `owner/name` of a hub data set.

    Raises:
        InputError: there is no such path, it holds no file that can be read, and it is no hub name either.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Source(files=(path,))
    if path.is_dir():
        return Source(files=tuple(_folder_files(path)))
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
    return InputError(
        f"{file}: there is no column {wanted!r}; it has {', '.join(map(repr, found))}{hint} (set {field})"
    )


def _folder_files(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"{folder}: the folder holds no file with a known extension ({', '.join(sorted(FORMATS))})")
    return found


def _did_you_mean(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir() if entry.exists()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
