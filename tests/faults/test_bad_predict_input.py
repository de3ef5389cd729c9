"""What `sortyard predict` reads: every row is answered or refused with its place, never passed over."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sortyard.data.options import TaskOptions
from sortyard.data.tasks import load_examples
from sortyard.errors import InputError
from sortyard.jobs.predicting import read_inputs

DEEP = '{"text": ' + "[" * 100_000


def read(source: Path | str, *, pair_column: str | None = None) -> list[Any]:
    return list(read_inputs(str(source), text_column="text", pair_column=pair_column))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,n\nfine,1\n"never closed,2\nlost,3\n', ":3: broken CSV: unexpected end of data"),
        ("a.csv", 'text,n\n"two\nlines",1\nshort\n', ":4: not 2 columns"),
        ("a.tsv", "text\tn\nfine\t1\nshort\n", ":3: not 2 columns"),
        ("a.tsv", "words\nfine\n", ": there is no column 'text'; it has 'words' (set --text-column)"),
        ("a.csv", "text,n\n", ": is empty"),
        ("a.jsonl", '{"text": "fine"}\n{"text": 7}\n', ":2: column 'text' is int, not text"),
        ("a.jsonl", '{"text": "fine"}\n{"text": null}\n', ":2: column 'text' has no text"),
        ("a.jsonl", '{"text": "fine"}\n{"text": "\\ud800"}\n', ":2: column 'text' holds a text with a lone surrogate"),
        ("a.jsonl", '{"text": "fine"}\n' + DEEP, ":2: not a JSON object"),
        ("a.txt", "fine\nnot\x00fine\n", ":2: NUL byte"),
        ("a", '{"text": "fine"}\n' + DEEP, ":2: begins with { but is no JSON object"),
        ("a", '{"text": "fine"}\n{"words": "b"}\n', ":2: there is no column 'text'; it has 'words'"),
        ("a.parquet", "no parquet", ": this is no sound Parquet file"),
        ("a.txt", "", ": is empty"),
    ],
)
def test_an_unsound_row_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "stdin: is empty"), (b"a\n\xff\n", "stdin:2: bad UTF-8")])
def test_standard_input_is_held_to_the_same(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(InputError, match=message):
        read("-")


def test_parquet_pairs_and_blank_lines_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "other": ["c", "d"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b"]
    assert read(tmp_path / "a.parquet", pair_column="other") == [("a", "c"), ("b", "d")]
    (tmp_path / "a.txt").write_text("a\n\n{b\n")
    assert read(tmp_path / "a.txt") == ["a", "", "{b"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "1", 0, "a"], ":2: label '1': every label before it is an integer"),
        (["a", "b", 1], ":3: label 1: every label before it is a string"),
    ],
)
def test_integers_and_strings_are_not_mixed_as_labels(tmp_path: Path, labels: list[object], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels))
    with pytest.raises(InputError) as caught:
        load_examples(TaskOptions(data=str(path)), "train")
    assert f"{path}{message}" in str(caught.value)
