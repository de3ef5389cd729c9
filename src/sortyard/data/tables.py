"""Tables read row by row: JSON lines, TSV, CSV and Parquet behind one face, never whole in memory."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sortyard.data.options import TextFormat
from sortyard.data.skips import OnSkip
from sortyard.data.stretches import StretchedFile, Stretches
from sortyard.errors import InputError

MAX_LINE_BYTES = 1_000_000
MAX_JSON_LINE_BYTES = 16_000_000  # one line is a whole document there
_ROWS_AT_ONCE = 64
_BYTE_ORDER_MARK = "\ufeff"
_TOO_LARGE = "field larger than field limit"  # how the csv module says it

Values = tuple[Any, ...]


class Table(Protocol):
    """A file of rows with named columns."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""

    def rows(self, wanted: tuple[str, ...], *, stretches: Stretches | None = None) -> Iterator[tuple[int, Values]]:
        """Iterate over (row number, values of the wanted columns); text files count lines, Parquet rows, from 1.

        Where `stretches` are given only the rows in them are read, and their numbers mean nothing.
        """


class LineStream(Protocol):
    """Bytes that are read by lines."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or as many of its bytes; nothing at the end."""


def open_table(path: Path, *, format: TextFormat, on_skip: OnSkip, headerless: tuple[str, ...] = ()) -> Table:  # noqa: A002
    """Open a table.

    Args:
        path: the file.
        format: jsonl, tsv, csv or parquet.
        on_skip: told about every row that cannot be read.
        headerless: columns of a TSV or CSV file whose first line holds none of these names but as many fields.

    Raises:
        InputError: the file is empty or not of that format.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if format == "parquet":
        return ParquetTable(path, on_skip=on_skip)
    if format == "jsonl":
        return JsonLinesTable(path, on_skip=on_skip)
    return DelimitedTable(path, quoted=format == "csv", headerless=headerless, on_skip=on_skip)


def text_lines(
    path: Path, *, max_bytes: int, on_skip: OnSkip, quoted: bool = False, stretches: Stretches | None = None
) -> Iterator[tuple[int, str]]:
    """Iterate over (line number, line without its end), leaving out lines that are no sound text.

    A longer line than `max_bytes`, bad UTF-8 and NUL bytes are reported to `on_skip`. Where `quoted`, a quote stands
    for such a line if it holds an odd number of them, else an empty line, so that what follows is read as it is meant.
    Where `stretches` are given only the lines that begin in them are read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        stream = file if stretches is None else StretchedFile(file, stretches)
        yield from stream_lines(stream, name=str(path), max_bytes=max_bytes, on_skip=on_skip, quoted=quoted)


def stream_lines(
    stream: LineStream, *, name: str, max_bytes: int, on_skip: OnSkip, quoted: bool = False
) -> Iterator[tuple[int, str]]:
    """Iterate over the lines of an open stream as `text_lines` does over a file's; `name` stands for it in messages."""
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        line, fault = _decoded(raw, max_bytes=max_bytes)
        if not fault:
            yield number, line.removeprefix(_BYTE_ORDER_MARK if number == 1 else "").rstrip("\r\n")
            continue
        num_quotes = raw.count(b'"')
        while len(raw) > max_bytes and not raw.endswith(b"\n"):
            raw = stream.readline(max_bytes + 1)
            num_quotes += raw.count(b'"')
        on_skip(fault, name, number)
        if quoted:
            yield number, '"' * (num_quotes % 2)


def _decoded(raw: bytes, *, max_bytes: int) -> tuple[str, str]:
    """Return a line's text, or nothing and what is wrong with it."""
    if len(raw) > max_bytes:
        return "", f"line longer than {max_bytes:,} bytes"
    if b"\x00" in raw:
        return "", "NUL byte"
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", "bad UTF-8"


def json_object(line: str) -> dict[str, Any] | None:
    """Parse a line that holds one JSON object; None where it does not."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _ignore(_reason: str, _file: str, _row: int) -> None:
    """Look at a header without counting what precedes it: reading the rows counts it."""


def _refuse_twins(columns: list[str], wanted: tuple[str, ...], *, path: Path) -> None:
    for name in wanted:
        if columns.count(name) > 1:
            raise InputError(f"{path}: {columns.count(name)} columns are called {name!r}; rename all but one of them")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class JsonLinesTable:
    """One JSON object per line; the columns are the keys of the first one."""

    def __init__(self, path: Path, *, on_skip: OnSkip) -> None:
        self._path = path
        self._on_skip = on_skip

    @property
    def columns(self) -> list[str]:
        """The keys of the first object."""
        first = next(self._objects(_ignore), None)
        if first is None:
            raise InputError(f"{self._path}: no line holds a JSON object; JSON lines need one object per line")
        return list(first[1])

    def rows(self, wanted: tuple[str, ...], *, stretches: Stretches | None = None) -> Iterator[tuple[int, Values]]:
        """Iterate over the objects; a key that one of them lacks gives None."""
        for number, values in self._objects(self._on_skip, stretches):
            yield number, tuple(values.get(name) for name in wanted)

    def _objects(self, on_skip: OnSkip, stretches: Stretches | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        found = False
        lines = text_lines(self._path, max_bytes=MAX_JSON_LINE_BYTES, on_skip=on_skip, stretches=stretches)
        for number, line in lines:
            if not line.strip():
                on_skip("empty row", str(self._path), number)
                continue
            values = json_object(line)
            if values is not None:
                found = True
                yield number, values
            elif not found and (line.strip() == "[" or line.lstrip().startswith("[{")):
                raise InputError(
                    f"{self._path}:{number}: the file is one JSON array; JSON lines need one object per line, "
                    "with no brackets around them and no commas between"
                )
            else:
                on_skip("not a JSON object", str(self._path), number)


class DelimitedTable:
    """TSV without quotes, as GLUE has it, or CSV with quotes."""

    def __init__(self, path: Path, *, quoted: bool, headerless: tuple[str, ...], on_skip: OnSkip) -> None:
        self._path = path
        self._quoted = quoted
        self._on_skip = on_skip
        first = next(self._fields(_ignore), None)
        if first is None:
            raise InputError(f"{path}: there is no readable line in it")
        header = [name.strip() for name in first[1]]
        if not any(header):
            raise InputError(
                f"{path}:{first[0]}: this line is blank, but the first one names the columns; delete the blank one"
            )
        self._has_header = not (len(header) == len(headerless) and not set(header) & set(headerless))
        self._columns = header if self._has_header else list(headerless)

    @property
    def columns(self) -> list[str]:
        """The fields of the first line."""
        return self._columns

    def rows(self, wanted: tuple[str, ...], *, stretches: Stretches | None = None) -> Iterator[tuple[int, Values]]:
        """Iterate over the rows below the header that have as many fields as it, each with its first line's number.

        A CSV file is read through even for a part of its rows, as a line in its middle may lie within a quoted field.
        """
        _refuse_twins(self._columns, wanted, path=self._path)
        places = [self._columns.index(name) for name in wanted]
        lines = self._fields(self._on_skip, None if self._quoted else stretches)
        if self._has_header:
            next(lines)
        num_read = 0
        for number, fields in lines:
            if self._quoted and stretches is not None:
                begin, num_read = num_read, num_read + len(fields) + sum(map(len, fields))  # about, or in characters
                if not stretches.covers(begin):
                    continue
            if len(fields) == len(self._columns):
                yield number, tuple(fields[place] for place in places)
            elif any(fields):
                self._on_skip(f"not {len(self._columns)} columns", str(self._path), number)
            else:
                self._on_skip("empty row", str(self._path), number)

    def _fields(self, on_skip: OnSkip, stretches: Stretches | None = None) -> Iterator[tuple[int, list[str]]]:
        if self._quoted:
            yield from self._quoted_fields(on_skip)
            return
        for number, line in text_lines(self._path, max_bytes=MAX_LINE_BYTES, on_skip=on_skip, stretches=stretches):
            yield number, line.split("\t")

    def _quoted_fields(self, on_skip: OnSkip) -> Iterator[tuple[int, list[str]]]:
        limit = MAX_LINE_BYTES + 2  # a whole line fits always, with an end of its own
        csv.field_size_limit(max(csv.field_size_limit(), limit))  # the module has no limit per reader
        taken: list[int] = []  # the lines of the current row, of which a quoted field may have several
        unsound: set[int] = set()
        again: list[str] = []
        last = ""

        def note(reason: str, file: str, number: int) -> None:
            unsound.add(number)
            on_skip(reason, file, number)

        def feed() -> Iterator[str]:
            nonlocal last
            for number, last in text_lines(self._path, max_bytes=MAX_LINE_BYTES, on_skip=note, quoted=True):
                taken.append(number)
                yield last + "\n"
                while again:
                    yield again.pop()

        def skip(reason: str) -> None:
            for number in taken:  # a quote that nobody closes swallows many
                if number not in unsound:
                    on_skip(reason, str(self._path), number)

        reader = csv.reader(feed(), strict=True)
        too_long = f"in a field of over {MAX_LINE_BYTES:,} characters"
        is_rest = False  # of a row with such a field
        while True:
            taken.clear()
            unsound.clear()
            try:
                fields = next(reader, None)
            except csv.Error as error:
                goes_on = str(error).startswith(_TOO_LARGE)
                skip(too_long if goes_on or is_rest else f"broken CSV: {error}")
                if goes_on:
                    again.append(f'"{last}\n')  # the module forgets that it was within quotes
                is_rest = goes_on
                continue
            if fields is None:
                return
            if is_rest:
                skip(too_long)
            elif not unsound:
                yield taken[0], fields
            is_rest = False


class ParquetTable:
    """Parquet, a batch of rows at a time."""

    def __init__(self, path: Path, *, on_skip: OnSkip) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        self._on_skip = on_skip
        self._errors: tuple[type[Exception], ...] = (pa.ArrowException, OSError)
        try:
            self._file = pq.ParquetFile(path)
        except self._errors as error:
            raise InputError(f"{path}: this is no sound Parquet file: {_one_line(error)}") from error
        self._num_bytes, self._num_rows = path.stat().st_size, int(self._file.metadata.num_rows)

    @property
    def columns(self) -> list[str]:
        """The top-level columns of the schema."""
        return list(self._file.schema_arrow.names)

    def rows(self, wanted: tuple[str, ...], *, stretches: Stretches | None = None) -> Iterator[tuple[int, Values]]:
        """Iterate over the rows; a null gives None."""
        _refuse_twins(self.columns, wanted, path=self._path)
        number = 0
        try:
            for first, groups in self._groups(stretches):
                number = first
                for batch in self._file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=list(wanted)):
                    columns = [batch.column(batch.schema.get_field_index(name)) for name in wanted]
                    for index in range(batch.num_rows):
                        number += 1
                        if stretches is not None and not stretches.covers(self._place(number - 1)):
                            continue
                        try:
                            values = tuple(column[index].as_py() for column in columns)
                        except UnicodeDecodeError:
                            self._on_skip("bad UTF-8", str(self._path), number)
                            continue
                        yield number, values
        except self._errors as error:
            raise InputError(f"{self._path}:{number + 1}: the Parquet file is damaged: {_one_line(error)}") from error

    def _groups(self, stretches: Stretches | None) -> Iterator[tuple[int, list[int]]]:
        """Iterate over the row groups to read, with the number of rows before them."""
        groups = range(self._file.num_row_groups)
        if stretches is None:
            yield 0, list(groups)
            return
        first = 0
        for group in groups:
            end = first + self._file.metadata.row_group(group).num_rows
            if stretches.next(self._place(first)) < self._place(end):
                yield first, [group]
            first = end

    def _place(self, row: int) -> int:
        """Return about where a row, from 0, stands among the file's bytes."""
        return row * self._num_bytes // max(1, self._num_rows)
