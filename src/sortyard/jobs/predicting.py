"""Texts in, predictions out, one at a time and in order."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError
from sortyard.jobs.folders import model_folder

if TYPE_CHECKING:
    from sortyard.interop.predictor import Predictor

Input = str | tuple[str, str]
Columns = tuple[str, str | None]
DELIMITERS = {".tsv": "\t", ".csv": ","}


def open_predictor(source: Path, *, device: str) -> "Predictor":
    """Loads the model of a run, of a demo, or of a model's folder.

    Raises:
        InputError: There is no model with a classification head.
    """
    folder = model_folder(source)  # before torch is loaded: a wrong path is told at once
    from sortyard.interop.predictor import Predictor

    return Predictor.from_pretrained(folder, device=device)


def read_inputs(source: str, *, text_column: str, pair_column: str | None) -> Iterator[Input]:
    """Reads texts, streaming: a line each, or a row each of JSON lines, TSV or CSV, by the file's ending.

    Lines that begin with `{` on standard input are read as JSON lines.

    Args:
        source: A file, or `-` for standard input.
        text_column: Field or column of the text.
        pair_column: Field or column of the second text, if any.

    Raises:
        InputError: There is no such file, or a line of it cannot be used; the message names file and line.
    """
    columns = (text_column, pair_column)
    if source == "-":
        return _inputs(_decoded(sys.stdin.buffer, file="stdin"), file="stdin", kind="", columns=columns)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"--input {path}: there is no such file")
    if path.stat().st_size == 0:
        raise InputError(f"--input {path}: is empty")
    return _from_file(path, columns=columns)


def _from_file(path: Path, *, columns: Columns) -> Iterator[Input]:
    with path.open("rb") as stream:
        lines = _decoded(stream, file=str(path))
        yield from _inputs(lines, file=str(path), kind=path.suffix.lower(), columns=columns)


def _decoded(stream: Iterable[bytes], *, file: str) -> Iterator[str]:
    for number, raw in enumerate(stream, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}:{number}: is not UTF-8 text ({error.reason})") from error


def _inputs(lines: Iterator[str], *, file: str, kind: str, columns: Columns) -> Iterator[Input]:
    if kind in DELIMITERS:
        yield from _rows(lines, file=file, delimiter=DELIMITERS[kind], columns=columns)
        return
    as_json = kind in (".jsonl", ".ndjson")
    for number, raw in enumerate(lines, start=1):
        line, where = raw.rstrip("\r\n"), f"{file}:{number}"
        if as_json or (kind == "" and line.startswith("{")):
            yield _record(_parsed(line, where=where), columns=columns, where=where)
        else:
            yield line


def _rows(lines: Iterator[str], *, file: str, delimiter: str, columns: Columns) -> Iterator[Input]:
    if delimiter == "\t":
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        for row in reader:
            yield _record(row, columns=columns, where=f"{file}:{reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from error


def _parsed(line: str, *, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON object ({error})") from error


def _record(row: Any, *, columns: Columns, where: str) -> Input:
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a JSON object with the field {columns[0]!r}")
    values = []
    for column in columns:
        if column is None:
            continue
        value = row.get(column)
        if not isinstance(value, str):
            known = ", ".join(repr(name) for name in row if isinstance(name, str))
            option = "--text-column" if column == columns[0] else "--pair-column"
            raise InputError(f"{where}: has no text in {column!r}; it has {known} (set {option})")
        values.append(value)
    return values[0] if len(values) == 1 else (values[0], values[1])


def prediction_lines(predictor: "Predictor", inputs: Iterable[Input], *, batch_size: int) -> Iterator[str]:
    """Yields one JSON line for each input, in order, holding no more than a window of them.

    Args:
        predictor: The loaded model.
        inputs: Texts or pairs.
        batch_size: Sequences in one forward pass.
    """
    shown, asked = tee(inputs)
    for number, (prediction, text) in enumerate(
        zip(predictor.predict(asked, batch_size=batch_size), shown, strict=True)
    ):
        texts = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
        yield json.dumps({"index": number, **texts, **prediction.as_dict()}, ensure_ascii=False)
