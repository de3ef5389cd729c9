"""The standard library as a corpus and as a task."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sortyard.data import stdlib_task
from sortyard.data.options import TaskOptions
from sortyard.data.stdlib import Part, StdlibDocument, stdlib_corpus
from sortyard.data.stdlib_task import StdlibTask, make_stdlib_task
from sortyard.data.tasks import load_examples


@pytest.fixture(scope="module")
def documents() -> list[StdlibDocument]:
    return list(stdlib_corpus())


@pytest.fixture(scope="module")
def task(documents: list[StdlibDocument]) -> StdlibTask:
    return make_stdlib_task(documents)


def test_there_is_enough_prose(documents: list[StdlibDocument]) -> None:
    assert sum(len(document.text) for document in documents) > 2_000_000
    assert all(document.parts for document in documents)


def test_docstrings_and_comments_are_found_in_order(documents: list[StdlibDocument]) -> None:
    heap = next(document for document in documents if document.module == "heapq")
    assert heap.parts[0].kind == "docstring"
    assert heap.parts[0].text.startswith("Heap queue algorithm")
    assert any(
        part == Part("docstring", part.text) and part.text.startswith("Push item onto heap") for part in heap.parts
    )
    assert any(part.kind == "comment" and "\n" in part.text and "child" in part.text for part in heap.parts)


def test_the_language_reference_is_text_but_no_passage(documents: list[StdlibDocument], task: StdlibTask) -> None:
    topics = next(document for document in documents if document.module == "pydoc_data.topics")
    assert {part.kind for part in topics.parts} >= {"reference"}
    assert {passage.kind for passage in (*task.train, *task.dev)} == set(stdlib_task.KINDS)


def test_nothing_of_the_modules_held_out_is_trained_on(task: StdlibTask) -> None:
    held_out = {passage.module for passage in task.dev}
    assert not held_out & {document.module for document in task.documents}
    assert not held_out & {passage.module for passage in task.train}
    text = "\n".join(" ".join(part.text.split()) for document in task.documents for part in document.parts)
    assert [passage for passage in task.dev if passage.text in text] == []


def test_passages_keep_their_bounds_and_both_splits_their_shares(task: StdlibTask) -> None:
    assert len(task.train) > 8000
    assert 0.1 < len(task.dev) / len(task.train) < 0.4
    sizes = [len(passage.text) for passage in (*task.train, *task.dev)]
    assert (min(sizes) >= 40, max(sizes) <= 300) == (True, True)
    for split in (task.train, task.dev):
        counts = Counter(passage.kind for passage in split)
        assert 0.15 < counts["docstring"] / len(split) < 0.6
    texts = [passage.text for passage in (*task.train, *task.dev)]
    assert len(texts) == len(set(texts))


def test_the_split_does_not_depend_on_the_order(documents: list[StdlibDocument], task: StdlibTask) -> None:
    again = make_stdlib_task(reversed(documents))
    assert {document.module for document in again.documents} == {document.module for document in task.documents}


def test_files_and_examples_are_the_same_task(
    documents: list[StdlibDocument], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdlib_task, "stdlib_corpus", lambda: iter(documents))
    stdlib_task.write_stdlib_files(tmp_path)
    files = TaskOptions(data=str(tmp_path / stdlib_task.TRAIN), dev=str(tmp_path / stdlib_task.DEV))
    for split in ("train", "dev"):
        written, made = (load_examples(options, split) for options in (files, TaskOptions(data="stdlib")))
        assert written.task == made.task
        assert written.texts == made.texts
        assert np.array_equal(written.labels, made.labels)
    assert len((tmp_path / stdlib_task.TEXT).read_text().splitlines()) < len(documents)
