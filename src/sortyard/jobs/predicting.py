"""Texts in, predictions out, one at a time and in order."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sortyard.data.locate import FORMATS, missing_column
from sortyard.data.options import TextFormat
from sortyard.data.skips import text_fault
from sortyard.data.tables import MAX_JSON_LINE_BYTES, json_object, open_table, stream_lines, text_lines
from sortyard.digests import files_digest
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.jobs.folders import model_folder

if TYPE_CHECKING:
    from sortyard.interop.predictor import Precision, Predictor

Input = str | tuple[str, str]
Columns = tuple[str, str | None]
_OF_THE_ANSWERS = (".json", ".txt", ".model", ".safetensors")  # configuration, tokenizer and weights


def open_predictor(source: Path, *, device: str, precision: "Precision", compiled: bool) -> "Predictor":
    """Loads the model of a run, of a demo, or of a model's folder.

    Raises:
        InputError: There is no model with a classification head.
    """
    folder = model_folder(source)  # before torch is loaded: a wrong path is told at once
    from sortyard.interop.predictor import Predictor

    return Predictor.from_pretrained(folder, device=device, precision=precision, compiled=compiled)


def read_inputs(source: str, *, text_column: str, pair_column: str | None) -> Iterator[Input]:
    """Reads texts, streaming: a row each of JSON lines, TSV, CSV or Parquet, by the file's ending, or else a line each.

    Lines that begin with `{` are read as JSON lines on standard input and in a file without an ending. Every row has
    to be sound, as none is left without an answer.

    Args:
        source: A file, or `-` for standard input.
        text_column: Field or column of the text.
        pair_column: Field or column of the second text, if any.

    Raises:
        InputError: There is no such file, it holds no text, or a row of it cannot be used; the message names file and
            row (a text file's rows are numbered by their first lines).
    """
    columns = (text_column, pair_column)
    if source == "-":
        lines = stream_lines(sys.stdin.buffer, name="stdin", max_bytes=MAX_JSON_LINE_BYTES, on_skip=_refuse)
        return _some(_from_lines(lines, file="stdin", columns=columns), file="stdin")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"--input {path}: there is no such file")
    if path.stat().st_size == 0:
        raise _empty(f"--input {path}")
    kind = FORMATS.get(path.suffix.lower(), "txt")
    if kind != "txt":
        return _some(_from_table(path, kind=kind, columns=columns), file=str(path))
    lines = text_lines(path, max_bytes=MAX_JSON_LINE_BYTES, on_skip=_refuse)
    if path.suffix:
        return (line for _, line in lines)
    return _from_lines(lines, file=str(path), columns=columns)


def _refuse(reason: str, file: str, row: int) -> NoReturn:
    raise InputError(f"{file}:{row}: {reason}; every row must hold a text, as none is skipped here")


def _empty(file: str) -> InputError:
    return InputError(f"{file}: is empty; there is no text to classify")


def _some(inputs: Iterator[Input], *, file: str) -> Iterator[Input]:
    first = next(inputs, None)
    if first is None:
        raise _empty(file)
    yield first
    yield from inputs


def _from_lines(lines: Iterator[tuple[int, str]], *, file: str, columns: Columns) -> Iterator[Input]:
    names = [name for name in columns if name is not None]
    for number, line in lines:
        if not line.startswith("{"):
            yield line
            continue
        record = json_object(line)
        if record is None:
            raise InputError(f"{file}:{number}: begins with {{ but is no JSON object")
        for name in names:
            if name not in record:
                raise missing_column(f"{file}:{number}", name, list(record), _option(name, columns))
        yield _input([record[name] for name in names], columns=columns, where=f"{file}:{number}")


def _from_table(path: Path, *, kind: TextFormat, columns: Columns) -> Iterator[Input]:
    table = open_table(path, format=kind, on_skip=_refuse)
    names = tuple(name for name in columns if name is not None)
    for name in names:
        if name not in table.columns:
            raise missing_column(str(path), name, table.columns, _option(name, columns))
    for row, values in table.rows(names):
        yield _input(values, columns=columns, where=f"{path}:{row}")


def _input(values: Sequence[Any], *, columns: Columns, where: str) -> Input:
    for name, value in zip(columns, values, strict=False):  # there is no second value where no second column is asked
        fault = _fault(value)
        if fault is not None:
            raise InputError(f"{where}: column {name!r} {fault} (set {_option(name, columns)} to read another)")
    return values[0] if len(values) == 1 else (values[0], values[1])


def _fault(value: Any) -> str | None:
    if value is None:
        return "has no text"
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    reason = text_fault(value) if value.strip() else None  # an empty text gets its answer like any other
    return None if reason is None else f"holds a text with a {reason}"


def _option(name: str | None, columns: Columns) -> str:
    return "--text-column" if name == columns[0] else "--pair-column"


def prediction_lines(
    predictor: "Predictor",
    inputs: Iterable[Input],
    *,
    batch_size: int | None,
    tokens_per_batch: int | None,
    first: int = 0,
) -> Iterator[str]:
    """Yields one JSON line for each input, in order, holding no more than a window of them.

    Args:
        predictor: The loaded model.
        inputs: Texts or pairs.
        batch_size: Sequences in one forward pass at most.
        tokens_per_batch: Tokens in one forward pass at most.
        first: Index of the first input.
    """
    answered = predictor.predict_beside(inputs, batch_size=batch_size, tokens_per_batch=tokens_per_batch)
    for number, (text, prediction) in enumerate(answered, start=first):
        yield json.dumps({"index": number, **_named(text), **prediction.as_dict()}, ensure_ascii=False)


def model_digest(source: Path) -> str:
    """Digests the files that a model's answers depend on.

    Args:
        source: A run, a demo, or a model's folder.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        InputError: There is no model.
    """
    files = sorted(model_folder(source).iterdir())
    return files_digest(path for path in files if path.suffix in _OF_THE_ANSWERS and path.is_file())


def note_of(path: Path) -> Path:
    """Returns the file that tells, beside unfinished answers, which model gives them."""
    return path.with_name(f"{path.name}.model")


def begin(path: Path, *, model: str) -> None:
    """Notes beside a file of answers, before there are any, which model gives them."""
    replace_bytes(note_of(path), model.encode())


def take_up(path: Path, inputs: Iterator[Input], *, model: str) -> int:
    """Goes on where an interrupted run stopped: drops a torn last line, and skips what is answered.

    Args:
        path: The unfinished file.
        inputs: Texts or pairs from the first on; those that are answered are taken from it.
        model: Digest of the model.

    Returns:
        How many are answered.

    Raises:
        InputError: The answers are not known to be this model's, or a line of the file is not the answer to the input
            in its place.
    """
    note = note_of(path)
    if not note.is_file() or note.read_text(encoding="utf-8", errors="replace") != model:
        raise InputError(
            f"{path}: by {note} its answers are not known to be those of this model; give the model it was begun "
            f"with, or delete {path} to start over"
        )
    count = size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            answer, text = json_object(line.decode("utf-8", errors="replace")), next(inputs, None)
            asked = None if text is None else _named(text)
            if answer is None or asked is None or {name: answer.get(name) for name in asked} != asked:
                raise InputError(
                    f"{path}:{count + 1}: is no answer to input {count + 1}; give the input it was begun with, or "
                    "delete the file to start over"
                )
            count, size = count + 1, size + len(line)
    os.truncate(path, size)
    return count


def _named(text: Input) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
