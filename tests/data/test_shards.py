"""Shards: the same bytes with or without interruption, and nothing unsound is ever opened."""

import errno
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sortyard import durable
from sortyard.data import prepare, shard_writing
from sortyard.data.options import CorpusOptions
from sortyard.data.shards import TokenShards, prepare_shards
from sortyard.errors import InputError
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

SHARD_TOKENS = 2048


def options(corpus: Path, **changed: Any) -> CorpusOptions:
    return CorpusOptions(path=str(corpus), **{"shard_tokens": SHARD_TOKENS, **changed})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_BATCH_TEXTS", 7)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 3000)


def test_shards_hold_every_document_without_special_tokens(
    corpus: Path, texts: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    index = prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    shards = TokenShards.open(tmp_path / "out", tokenizer=tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert len(index.shards) > 5
    assert index.complete
    assert shards.num_documents == len(texts)
    assert shards.num_tokens == sum(map(len, expected))
    for number, ids in enumerate(expected):
        np.testing.assert_array_equal(shards.document(number), ids)
    flat = np.concatenate(expected)
    borders = np.concatenate([[0], np.cumsum([len(ids) for ids in expected])])
    np.testing.assert_array_equal(shards.offsets(0, len(texts)), borders)
    np.testing.assert_array_equal(shards.tokens(0, len(flat)), flat)
    for first in range(0, len(texts) - 40, 7):
        np.testing.assert_array_equal(shards.offsets(first, first + 40), borders[first : first + 41])
        np.testing.assert_array_equal(shards.tokens(first, 99 * first + 1), flat[first : 99 * first + 1])


def test_truncation_set_on_the_tokenizer_changes_nothing(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "a")
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    try:
        prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "b")
    finally:
        tokenizer.backend_tokenizer.no_truncation()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("calls", [1, 4, 9, 14])
def test_resumed_shards_equal_uninterrupted_ones(corpus: Path, tokenizer: Any, tmp_path: Path, calls: int) -> None:
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "whole")
    seen: list[int] = []

    def stop(documents: int, tokens: int, done: int, total: int | None) -> None:
        seen.append(documents)
        if len(seen) == calls:
            raise KilledError

    with pytest.raises(KilledError):
        prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "cut", on_progress=stop)
    with pytest.raises(InputError, match="did not finish"):
        TokenShards.open(tmp_path / "cut")
    listed = len(json.loads((tmp_path / "cut" / "index.json").read_text())["shards"])
    (tmp_path / "cut" / ".aside-tokens-00099.bin").write_bytes(b"left by a kill")
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "cut")
    (tmp_path / "cut" / ".aside-tokens-00099.bin").unlink(missing_ok=True)
    assert calls < 9 or listed > 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_kept_shards_are_not_written_again(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(documents: int, tokens: int, done: int, total: int | None) -> None:
        if tokens > 3 * SHARD_TOKENS:
            raise KilledError

    with pytest.raises(KilledError):
        prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out", on_progress=stop)
    first = (tmp_path / "out" / "tokens-00000.bin").stat()
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    assert (tmp_path / "out" / "tokens-00000.bin").stat().st_ino == first.st_ino
    before = contents(tmp_path / "out")
    monkeypatch.setattr(shard_writing.ShardWriter, "add", None)
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_skipped_rows_are_in_the_index_also_after_resuming(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": text}) for text in texts[:40]]
    rows[5], rows[30] = json.dumps({"text": "\u200b\u200b"}), json.dumps({"text": None})
    path.write_text("\n".join(rows) + "\n")
    index = prepare_shards(options(path, shard_tokens=1024), tokenizer=tokenizer, out=tmp_path / "out")
    assert index.skipped["counts"] == {"empty text": 1, "no token of the vocabulary": 1}
    assert index.skipped["places"] == {"empty text": [f"{path}:31"]}
    assert (index.num_texts, index.num_documents) == (39, 38)


@pytest.mark.parametrize("change", ["source", "tokenizer", "reading"])
def test_a_folder_with_other_data_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path, change: str) -> None:
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    changed = options(corpus)
    if change == "source":
        corpus.write_text(corpus.read_text().replace("ka", "ke"))
    elif change == "tokenizer":
        tokenizer = train_tokenizer(["something else"], TokenizerOptions(vocab_size=300))
    else:
        changed = options(corpus, max_documents=3)
    with pytest.raises(InputError, match="holds shards of other data"):
        prepare_shards(changed, tokenizer=tokenizer, out=tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_folder_with_other_files_or_a_file_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    with pytest.raises(InputError, match="is a file"):
        prepare_shards(options(corpus), tokenizer=tokenizer, out=corpus)


def test_a_full_disk_is_named_and_preparing_goes_on_afterwards(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "whole")
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(InputError, match=r"tokens-\d+.bin|documents-\d+.npy|index.json") as caught:
            prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    assert re.search(r"the disk is full: \d+ bytes", str(caught.value))
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index", "version"])
def test_damaged_shards_are_refused_by_name(corpus: Path, tokenizer: Any, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    prepare_shards(options(corpus), tokenizer=tokenizer, out=out)
    victim = out / ("index.json" if damage in ("index", "version") else "tokens-00002.bin")
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "version":
        data = bytearray(bytes(data).replace(b'"version": 2', b'"version": 9'))
    else:
        del data[len(data) // 2 :]
    victim.unlink() if damage == "gone" else victim.write_bytes(bytes(data))
    with pytest.raises(InputError, match=re.escape(str(victim))):
        TokenShards.open(out)


def test_wrong_tokenizer_and_missing_folder_are_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    prepare_shards(options(corpus), tokenizer=tokenizer, out=tmp_path / "out")
    other = train_tokenizer(["something else"], TokenizerOptions(vocab_size=300))
    with pytest.raises(InputError, match="another tokenizer"):
        TokenShards.open(tmp_path / "out", tokenizer=other)
    with pytest.raises(InputError, match="no token shards here"):
        TokenShards.open(tmp_path / "nothing")


def test_progress_grows_to_the_size_of_the_files(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n\n".join(texts))
    told: list[tuple[int, int, int, int | None]] = []
    prepare_shards(
        options(path), tokenizer=tokenizer, out=tmp_path / "out", on_progress=lambda *values: told.append(values)
    )
    assert [values[2] for values in told] == sorted({values[2] for values in told})
    assert told[-1][3] == path.stat().st_size >= told[-1][2]


@pytest.mark.slow
def test_memory_stays_bounded_on_a_large_corpus(
    tokenizer: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path, size = tmp_path / "large.txt", 30_000_000
    block = "\n\n\n".join(texts) + "\n\n\n"
    with path.open("w") as file:
        for _ in range(size // len(block)):
            file.write(block)
    large = options(path, shard_tokens=1 << 20)
    tracemalloc.start()
    try:
        prepare_shards(large, tokenizer=tokenizer, out=tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 1.5
