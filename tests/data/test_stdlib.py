"""The standard library as a corpus and as a task."""

import pytest

from sortyard.data import stdlib_task
from sortyard.data.stdlib import StdlibDocument, stdlib_corpus
from sortyard.data.stdlib_families import FAMILIES, family_of


@pytest.fixture(scope="module")
def documents() -> list[StdlibDocument]:
    return list(stdlib_corpus(include_tests=False))


def test_there_is_prose_in_every_family(documents: list[StdlibDocument]) -> None:
    sizes = dict.fromkeys((*FAMILIES, "other"), 0)
    for document in documents:
        sizes[document.family] += len(document.text)
    assert 6 <= len(FAMILIES) <= 12
    assert min(sizes[family] for family in FAMILIES) > 100_000
    assert sum(sizes.values()) > 2_000_000
    assert [document.module for document in documents] == [document.module for document in documents if document.parts]


def test_docstrings_and_comments_are_found_in_order(documents: list[StdlibDocument]) -> None:
    heap = next(document for document in documents if document.module == "heapq")
    assert heap.family == "numeric"
    assert heap.parts[0].startswith("Heap queue algorithm")
    assert any(part.startswith("Push item onto heap") for part in heap.parts)
    assert any("\n" in part and "child" in part and not part.startswith("#") for part in heap.parts)


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("asyncio.events", "concurrency"),
        ("tkinter.ttk", "gui"),
        ("idlelib.idle_test.test_config", "other"),
        ("test.test_json", "other"),
        ("antigravity", "other"),
    ],
)
def test_families_go_by_the_first_part_of_the_name(module: str, family: str) -> None:
    assert family_of(module) == family


def test_no_file_is_on_both_sides_and_passages_keep_their_bounds(
    documents: list[StdlibDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdlib_task, "stdlib_corpus", lambda include_tests=True: iter(documents))
    train, dev = stdlib_task.stdlib_passages(min_characters=200, max_characters=600)
    modules = [{place.rsplit(":", 1)[0] for place in split.places} for split in (train, dev)]
    assert not modules[0] & modules[1]
    assert not set(train.texts) & set(dev.texts)
    assert len(train) > 4000
    assert len(dev) > 1000
    for split in (train, dev):
        assert split.labels is not None
        assert set(split.labels.tolist()) == set(range(len(FAMILIES)))
        assert min(map(len, split.texts)) >= 200
        assert max(map(len, split.texts)) <= 600
    again, _ = stdlib_task.stdlib_passages(min_characters=200, max_characters=600)
    assert again.texts == train.texts
