"""Passages of novels: who wrote them, or when, learnt from some books and asked of others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sortyard.data.locate import format_of, missing_column
from sortyard.data.tables import open_table
from sortyard.errors import InputError

COLUMNS = ("text", "author", "year")
PERIOD = 20  # years: a decade has too few books of a small collection
TESTED = 1 / 3  # of a class's books, at least one


@dataclass(frozen=True)
class Book:
    """One book.

    Attributes:
        number: Its row in the table.
        text: All of it.
        author: As the table writes it; "" where it is not known.
        year: Of its first publication; None where it is not known.
    """

    number: int
    text: str
    author: str
    year: int | None


@dataclass(frozen=True)
class Shelf:
    """The books of every class, none of them on both sides.

    Attributes:
        by: What the classes are: author or period.
        train: Books to learn from, by class.
        test: Books to be asked about, by class.
    """

    by: str
    train: dict[str, list[Book]]
    test: dict[str, list[Book]]


def read_books(path: Path) -> list[Book]:
    """Read a table with the columns text, author and year, one book a row.

    Raises:
        InputError: A column is missing, or a year is no number.
    """
    table = open_table(path, format=format_of(path, "auto"), on_skip=lambda *_: None)
    for column in COLUMNS:
        if column not in table.columns:
            raise missing_column(str(path), column, table.columns, "text, author and year are needed for novels")
    books = []
    for row, (text, author, year) in table.rows(COLUMNS):
        try:
            found = None if year in (None, "") else int(year)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: row {row}: year is {year!r}; expected a number such as 1850") from error
        books.append(Book(row, str(text or ""), str(author or "").strip(), found))
    return books


def shelve(books: Sequence[Book], *, seed: int) -> Shelf:
    """Sort books into classes, and keep a third of each class's books for the test.

    Classes are the authors of several books; where there are not two of those, periods of 20 years.

    Raises:
        InputError: There are not two classes with two books either.
    """
    for by, groups in (("author", _by_author(books)), ("period", _by_period(books))):
        several = {name: group for name, group in sorted(groups.items()) if len(group) > 1}
        if len(several) > 1:
            return _split(several, by=by, seed=seed)
    raise InputError(
        "novels: neither two authors nor two periods of 20 years have two books each; a class needs a book to learn "
        "from and another to be asked about"
    )


def passages(
    shelf: dict[str, list[Book]], *, count: int, characters: int, seed: int
) -> list[tuple[str, str]]:  # fmt: skip
    """Take passages evenly from the classes and from each class's books.

    Args:
        shelf: Books by class.
        count: Passages wanted; fewer where the books are too short.
        characters: Of a passage, about: it begins and ends at a space.
        seed: Of the choice.

    Returns:
        Pairs of passage and class.
    """
    generator = np.random.default_rng(seed)
    wanted = -(-count // len(shelf))
    found: list[tuple[str, str]] = []
    for name, books in shelf.items():
        places = [(book, start) for book in books for start in _starts(book, characters)]
        order = generator.permutation(len(places))[:wanted]
        chosen = [places[index] for index in sorted(order)]
        found += [(_cut(book.text[start : start + characters]), name) for book, start in chosen]
    return [found[index] for index in generator.permutation(len(found))[:count]]


def _starts(book: Book, characters: int) -> Iterator[int]:
    """Where the passages of a book begin; its first one is left out, as a title page may name the author."""
    yield from range(characters, len(book.text) - characters, characters)


def _cut(text: str) -> str:
    """Take off the halves of words at both ends."""
    return text.partition(" ")[2].rpartition(" ")[0].strip() or text


def _by_author(books: Sequence[Book]) -> dict[str, list[Book]]:
    groups: dict[str, list[Book]] = {}
    for book in books:
        if book.author:
            groups.setdefault(book.author, []).append(book)
    return groups


def _by_period(books: Sequence[Book]) -> dict[str, list[Book]]:
    groups: dict[str, list[Book]] = {}
    for book in books:
        if book.year is not None:
            first = book.year // PERIOD * PERIOD
            groups.setdefault(f"{first} to {first + PERIOD - 1}", []).append(book)
    return groups


def _split(groups: dict[str, list[Book]], *, by: str, seed: int) -> Shelf:
    generator = np.random.default_rng(seed)
    train, test = {}, {}
    for name, books in groups.items():
        order = [books[index] for index in generator.permutation(len(books))]
        kept = max(1, round(TESTED * len(books)))
        test[name], train[name] = order[:kept], order[kept:]
    return Shelf(by, train, test)
