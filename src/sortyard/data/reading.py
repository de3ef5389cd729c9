"""Reading text, document by document, from whatever the user has; nothing is ever held whole."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sortyard.data.hub import stream_hub
from sortyard.data.locate import Source, format_of, locate, missing_column
from sortyard.data.options import CorpusOptions, TextFormat
from sortyard.data.skips import OnSkip, SkipLog, text_fault
from sortyard.data.stretches import Stretches
from sortyard.data.tables import MAX_LINE_BYTES, open_table, text_lines
from sortyard.errors import InputError

_GAP_LINES = 2
_MOST_BYTES = 4  # of a character in UTF-8
_NUM_STRETCHES = 1000


class TextRow(NamedTuple):
    """One document and where it stands: a row of a table, or the line of a text file at which it begins."""

    text: str
    file: str
    row: int


def read_texts(
    source: str | Path,
    *,
    on_skip: OnSkip,
    text_column: str = "text",
    format: TextFormat = "auto",  # noqa: A002
    max_document_characters: int = 1_000_000,
    hub_config: str | None = None,
    hub_split: str = "train",
    stretches: Stretches | None = None,
) -> Iterator[TextRow]:
    """Stream the documents of a source, always in the same order.

    A table (JSON lines, TSV without quotes, CSV, Parquet) holds a document per row. In a text file, two or more empty
    lines in a row end a document; single empty lines are paragraphs within it. A document longer than
    `max_document_characters` becomes several, cut at the last paragraph, line or space before that.

    Args:
        source: a file, folder, glob pattern or hub data set.
        on_skip: told the reason, file and row of every row left out: bad UTF-8, NUL bytes, lone surrogates, empty text,
            text that is no string, lines over 1 MB (16 MB for JSON), no white space in a whole document's length; and
            of every file of a folder that is not read.
        text_column: column or field that holds the text.
        format: the files' format; auto goes by the extension.
        max_document_characters: length at which a document is cut.
        hub_config: configuration of a hub data set.
        hub_split: split of a hub data set.
        stretches: what to read of files; None reads all of them.

    Raises:
        InputError: there is no such source, a file lacks the column, or no document is left.
    """
    found = locate(source)
    log = SkipLog()

    def note(reason: str, file: str, row: int) -> None:
        log.add(reason, file, row)
        on_skip(reason, file, row)

    for fault, path in found.left_out:
        note(fault, str(path), 1)
    if found.hub_name is not None:
        raw = _hub_texts(found.hub_name, config=hub_config, split=hub_split, column=text_column)
    else:
        raw = _file_texts(
            found,
            column=text_column,
            format=format,
            max_characters=max_document_characters,
            note=note,
            stretches=stretches,
        )
    count = 0
    for value, file, row in raw:
        reason = text_fault(value)
        if reason is not None:
            note(reason, file, row)
            continue
        for text in _cut(value, limit=max_document_characters, where=(file, row), note=note):
            count += 1
            yield TextRow(text, file, row)
    if not count:
        skipped = f": skipped {log.describe()}" if log.total else ""
        raise InputError(f"{source}: no text is left to read{skipped}")


def read_corpus(options: CorpusOptions, *, on_skip: OnSkip, stretches: Stretches | None = None) -> Iterator[TextRow]:
    """Stream the documents that a corpus' options describe, at most `max_documents`."""
    rows = read_texts(
        options.path,
        on_skip=on_skip,
        text_column=options.text_column,
        format=options.format,
        max_document_characters=options.max_document_characters,
        hub_config=options.hub_config,
        hub_split=options.hub_split,
        stretches=stretches,
    )
    for count, row in enumerate(rows, start=1):
        yield row
        if count == options.max_documents:
            return


def read_sample(options: CorpusOptions, *, max_characters: int, say: Callable[[str], None]) -> Iterator[str]:
    """Stream enough of a corpus to draw `max_characters` from: all of it, or stretches spread evenly over large files.

    Files are judged by their bytes, so that all is read of a text that has no more characters than that. A hub data
    set, whose size is not known, and the first `max_documents` are read as they come.

    Args:
        options: the corpus.
        max_characters: characters wanted at most; 0 reads all.
        say: told which part of the files is read, where it is not all.

    Raises:
        InputError: as `read_texts` does.
    """
    files = () if options.max_documents is not None else locate(options.path).files
    num_bytes = sum(path.stat().st_size for path in files)
    wanted = _MOST_BYTES * max_characters
    stretches = None
    if 0 < wanted < num_bytes:
        stretches = Stretches(wanted / num_bytes, width=-(-wanted // _NUM_STRETCHES))
        say(f"tokenizer reads {100 * stretches.share:.2g} % of {num_bytes:,} bytes, in stretches spread evenly")
    return (row.text for row in read_corpus(options, on_skip=lambda *_: None, stretches=stretches))


def _file_texts(
    source: Source,
    *,
    column: str,
    format: TextFormat,  # noqa: A002
    max_characters: int,
    note: OnSkip,
    stretches: Stretches | None,
) -> Iterator[tuple[Any, str, int]]:
    for path in source.files:
        kind = format_of(path, format)
        num_bytes, here = path.stat().st_size, stretches
        if num_bytes == 0 and len(source.files) > 1:
            note("empty file", str(path), 1)
            continue
        if here is not None:
            stretches = here.after(num_bytes)
            if here.next(0) >= num_bytes:
                continue
        if kind == "txt":
            yield from _blocks(path, max_characters=max_characters, note=note, stretches=here)
            continue
        table = open_table(path, format=kind, on_skip=note)
        if column not in table.columns:
            raise missing_column(str(path), column, table.columns, "text_column")
        for row, (value,) in table.rows((column,), stretches=here):
            yield value, str(path), row


def _blocks(
    path: Path, *, max_characters: int, note: OnSkip, stretches: Stretches | None
) -> Iterator[tuple[str, str, int]]:
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    lines: list[str] = []
    first, gap, characters = 1, 0, 0
    for number, line in text_lines(path, max_bytes=MAX_LINE_BYTES, on_skip=note, stretches=stretches):
        gap = 0 if line.strip() else gap + 1
        if lines and (gap >= _GAP_LINES or characters + len(line) > max_characters):
            yield "\n".join(lines).strip("\n"), str(path), first
            lines, characters = [], 0
        if not lines:
            if gap:
                continue
            first = number
        lines.append(line)
        characters += len(line) + 1
    if lines:
        yield "\n".join(lines).strip("\n"), str(path), first


def _cut(text: str, *, limit: int, where: tuple[str, int], note: OnSkip) -> Iterator[str]:
    while len(text) > limit:
        borders = (text.rfind(border, limit // 2, limit) for border in ("\n\n", "\n", " "))
        end = next((border for border in borders if border >= 0), -1)
        if end < 0:
            note(f"no white space in {limit // 2:,} characters", *where)
            return
        yield text[:end]
        text = text[end:].lstrip()
    if text.strip():
        yield text


def _hub_texts(name: str, *, config: str | None, split: str, column: str) -> Iterator[tuple[Any, str, int]]:
    rows = stream_hub(name, config=config, split=split)
    label = f"{name} ({split})"
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise missing_column(label, column, list(row), "text_column")
        yield row[column], label, number
