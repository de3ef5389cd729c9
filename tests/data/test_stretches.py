"""Stretches: a share of every format, spread evenly over all files, in whole rows, and read without the rest."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sortyard.data.options import CorpusOptions
from sortyard.data.reading import read_sample, read_texts
from sortyard.data.skips import SkipLog
from sortyard.data.stretches import StretchedFile, Stretches
from sortyard.errors import InputError

FORMATS = ("txt", "jsonl", "tsv", "csv", "parquet")
WORDS = ["sort", "the", "logs", "of", "yard", "by", "length", "and", "grain"]


def document(number: int) -> str:
    return f"{number} " + " ".join(WORDS[number % len(WORDS) :] + WORDS)


def write(folder: Path, suffix: str, numbers: range) -> None:
    texts = [document(number) for number in numbers]
    path = folder / f"{numbers.start:06d}.{suffix}"
    if suffix == "parquet":
        table = pa.table({"text": texts, "other": [1.5] * len(texts)})
        pq.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif suffix == "txt":
        path.write_text("".join(text + "\n\n\n" for text in texts))
    else:
        path.write_text("text\n" + "".join(text + "\n" for text in texts))


def numbers_read(folder: Path, stretches: Stretches | None) -> list[int]:
    log = SkipLog()
    texts = [row.text for row in read_texts(folder, on_skip=log.add, stretches=stretches)]
    rows = [line for text in texts for line in text.split("\n") if line]  # lines of two stretches may be one document
    assert log.counts.keys() <= {"empty row"}
    numbers = [int(row.split()[0]) for row in rows]
    assert rows == [document(number) for number in numbers]
    return numbers


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("per_file", [10, 300, 6000])
def test_a_share_is_spread_evenly_over_files_large_and_small(tmp_path: Path, suffix: str, per_file: int) -> None:
    for first in range(0, 6000, per_file):
        write(tmp_path, suffix, range(first, min(6000, first + per_file)))
    taken = numbers_read(tmp_path, Stretches(0.1, width=1000))
    assert len(set(taken)) == len(taken)
    assert 0.07 < len(taken) / 6000 < 0.2  # the first line of a small file is more of it
    counts = np.histogram(taken, bins=10, range=(0, 6000))[0]
    assert counts.min() > 0.7 * counts.mean()


def test_what_lies_between_stretches_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number:09d}\n" for number in range(100_000)))
    with path.open("rb", buffering=0) as file:
        lines = StretchedFile(file, Stretches(0.01, width=500))
        taken = []
        while line := lines.readline(100):
            taken.append(int(line))
    assert taken == [number for number in range(100_000) if number % 5000 < 50]


def test_a_line_longer_than_what_lies_between_is_skipped_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n" + b"x" * 200_000 + b"\nlast\n")
    with path.open("rb") as file:
        lines = StretchedFile(file, Stretches(0.5, width=4))
        taken = [lines.readline(1000) for _ in range(3)]
    assert taken[0] == b"first\n"
    assert taken[1] in (b"last\n", b"")
    assert taken[2] == b""


def sampled(folder: Path, max_characters: int, **changed: object) -> tuple[list[str], list[str]]:
    told: list[str] = []
    options = CorpusOptions(path=str(folder), **changed)  # type: ignore[arg-type]
    return list(read_sample(options, max_characters=max_characters, say=told.append)), told


def test_a_corpus_within_the_bound_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path, "txt", range(1000))
    whole = [document(number) for number in range(1000)]
    num_bytes = next(tmp_path.iterdir()).stat().st_size
    for enough in (0, num_bytes // 4 + 1):
        assert sampled(tmp_path, enough) == (whole, [])
    assert sampled(tmp_path, 1, max_documents=7) == (whole[:7], [])


def test_stretches_are_read_of_a_larger_one_and_told(tmp_path: Path) -> None:
    for first in (0, 5000):
        write(tmp_path, "jsonl", range(first, first + 5000))
    num_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    rows, told = sampled(tmp_path, num_bytes // 80)
    assert told == [f"tokenizer reads 5 % of {num_bytes:,} bytes, in stretches spread evenly"]
    assert 0.04 < sum(map(len, rows)) / num_bytes < 0.06
    assert {int(row.split()[0]) // 1000 for row in rows} == set(range(10))


def test_a_missing_source_is_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file or folder"):
        sampled(tmp_path / "gone.txt", 5)
