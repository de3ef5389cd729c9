"""Passages of novels: no book is on both sides, and what the classes are."""

import json
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.studies.suites.long_documents import Wanted, find_files, read_documents
from sortyard.studies.suites.novels import Book, passages, read_books, shelve


def book(number: int, author: str, year: int | None, words: int = 600) -> Book:
    return Book(number, " ".join(f"b{number}w{word}" for word in range(words)), author, year)


def books_in(rows: list[tuple[str, str]]) -> set[str]:
    return {text.split()[1].partition("w")[0] for text, _ in rows}


LIBRARY = [
    *(book(i, "Eliot", 1860 + i) for i in range(3)),
    *(book(i, "Wells", 1895 + i) for i in range(3, 5)),
    book(5, "Brontë", 1847),
    book(6, "", 1850),
]


@pytest.mark.parametrize("seed", range(4))
def test_no_book_is_learnt_from_and_asked_about(seed: int) -> None:
    shelf = shelve(LIBRARY, seed=seed)
    assert shelf.by == "author"
    assert set(shelf.train) == set(shelf.test) == {"Eliot", "Wells"}  # who has one book is no class
    train = passages(shelf.train, count=20, characters=200, seed=seed)
    test = passages(shelf.test, count=10, characters=200, seed=seed)
    assert books_in(train).isdisjoint(books_in(test))
    assert books_in(train) | books_in(test) == {f"b{i}" for i in range(5)}
    assert len(train) == 20
    assert len(test) == 10
    assert {label for _, label in train} == {label for _, label in test}
    own = {"Eliot": {"b0", "b1", "b2"}, "Wells": {"b3", "b4"}}
    assert all(text.split()[0].partition("w")[0] in own[label] for text, label in train + test)


def test_words_are_whole_and_the_first_passage_is_left_out() -> None:
    shelf = shelve(LIBRARY, seed=0)
    for text, _ in passages(shelf.train, count=200, characters=150, seed=0):
        assert all(word in {f"{word.partition('w')[0]}w{i}" for i in range(600)} for word in text.split())
        assert "w0 " not in text
        assert len(text) <= 150


def test_periods_where_no_two_authors_have_several_books() -> None:
    shelf = shelve([book(i, f"author {i}", 1842 + 6 * i) for i in range(6)], seed=0)
    assert shelf.by == "period"
    assert set(shelf.train) == {"1840 to 1859", "1860 to 1879"}


def test_too_few_books() -> None:
    with pytest.raises(InputError, match="two books each"):
        shelve([book(0, "Eliot", 1860), book(1, "Wells", 1900)], seed=0)


def test_the_table(tmp_path: Path) -> None:
    file = tmp_path / "novels.jsonl"
    rows = [{"text": each.text, "author": each.author, "year": each.year} for each in LIBRARY]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(each.author, each.year) for each in read_books(file)] == [(each.author, each.year) for each in LIBRARY]
    files = find_files([str(tmp_path)])
    assert files == {"novels": [file]}
    found = read_documents("novels", files["novels"], wanted=Wanted((32, 64), train=12, test=6))
    assert "2 classes by author" in found.notes[0]
    assert (len(found.train), len(found.test)) == (12, 6)

    file.write_text(json.dumps({"text": "a", "author": "b"}) + "\n")
    with pytest.raises(InputError, match="year"):
        read_books(file)
    file.write_text(json.dumps({"text": "a", "author": "b", "year": "about 1850"}) + "\n")
    with pytest.raises(InputError, match="row 1: year is 'about 1850'"):
        read_books(file)


def test_newsgroups_are_split_by_time_and_repeats_left_out(tmp_path: Path) -> None:
    texts = [f"message {i} " + "word " * 60 for i in range(10)]
    texts[9] = texts[0]
    rows = [
        {"text": text, "label": i % 2, "timestamp": 1000 - i if i < 9 else 990} for i, text in enumerate(texts)
    ]  # fmt: skip
    file = tmp_path / "newsgroups20.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "no time " * 40, "label": 1}]))
    found = read_documents("newsgroups", [file], wanted=Wanted((64,), train=100, test=100))
    train, test = ({text for text, _ in side} for side in (found.train, found.test))
    assert train == {texts[i] for i in (9, 8, 7, 6, 5, 4)}
    assert test == {texts[i] for i in (3, 2, 1)}  # message 0 was sent before, too
    assert "1 without a time and 1 repeated" in found.notes[1]
    assert any("only 6 training" in note for note in found.notes)
