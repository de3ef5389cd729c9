"""The documents of `--suite long`, and the files that the runs read."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sortyard.data.locate import FORMATS, format_of, missing_column
from sortyard.data.tables import open_table
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.studies.suites.listops import ListOpsSizes, generate
from sortyard.studies.suites.novels import passages, read_books, shelve

Rows = list[tuple[str, str]]  # text and label
LONG_TASKS = ("imdb", "newsgroups", "novels", "listops")
CHARACTERS = 5  # of a token, at most about: a passage of so many for each token of the longest input fills it
LATER = 0.4  # share of the newsgroups' messages that are tested on, the last ones
SELDOM = 4  # of a token, at least about: shorter documents than the shortest input need no second look


@dataclass(frozen=True)
class Documents:
    """One task's documents.

    Attributes:
        train: To learn from.
        test: To be scored on.
        notes: How they were chosen.
    """

    train: Rows
    test: Rows
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """How many documents, and how long.

    Attributes:
        lengths: Tokens read of a document, in order.
        train: Documents to learn from.
        test: Documents to be scored on.
        seed: Of every choice.
    """

    lengths: tuple[int, ...]
    train: int
    test: int
    seed: int = 0


def find_files(sources: Sequence[str]) -> dict[str, list[Path]]:
    """Find each task's files among folders and files, by their names; ListOps needs none.

    Returns:
        By task: training and test file of IMDB, one file of the others; tasks without files are left out.

    Raises:
        InputError: There is no such folder or file.
    """
    files = []
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists():
            raise InputError(f"--data {source}: there is no such folder or file")
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    named = {file: file.name.partition(".")[0].lower() for file in files if file.suffix.lower() in FORMATS}
    found = {
        "imdb": [file for part in ("train", "test") for file, name in named.items() if name == f"imdb_{part}"],
        "newsgroups": [file for file, name in named.items() if "newsgroups" in name][:1],
        "novels": [file for file, name in named.items() if "novels" in name][:1],
    }
    return {task: each for task, each in found.items() if len(each) == (2 if task == "imdb" else 1)}


def read_documents(task: str, files: Sequence[Path], *, wanted: Wanted) -> Documents:
    """Read a task's documents and choose among them.

    Raises:
        InputError: A file cannot be used, or there are too few documents.
    """
    readers: dict[str, Callable[..., Documents]] = {"imdb": _imdb, "newsgroups": _newsgroups, "novels": _novels}
    found = readers[task](files, wanted=wanted)
    if len({label for _, label in found.train}) < 2 or not found.test:
        raise InputError(
            f"{task}: {len(found.train)} documents to learn from and {len(found.test)} to score are too few; give "
            "more, or shorter --lengths"
        )
    return found


def listops_documents(length: int, *, tokenizer: Any, wanted: Wanted, sizes: ListOpsSizes) -> Documents:
    """Draw expressions that fill an input, up to the sizes, in the model's own tokens.

    Args:
        length: Tokens of the input.
        tokenizer: The model's.
        wanted: How many.
        sizes: The largest ones; shorter inputs get smaller expressions, from a quarter of the longest to the longest.
    """
    sample = generate(20, sizes=replace(sizes, shortest=40, longest=200), seed=wanted.seed)
    elements = sum(len(each.text.split()) for each in sample)
    per_element = (
        sum(len(ids) for ids in tokenizer([each.text for each in sample], verbose=False)["input_ids"]) / elements
    )
    longest = min(sizes.longest, int(0.95 * (length - 2) / per_element))
    if longest < 8:
        raise InputError(f"--lengths {length}: is too short for ListOps; give 64 at least")
    fitting = replace(sizes, longest=longest, shortest=min(sizes.shortest, longest // 4))
    drawn = generate(wanted.train + wanted.test, sizes=fitting, seed=wanted.seed)
    rows = [(each.text, str(each.value)) for each in drawn]
    note = f"{length} tokens: {fitting.shortest} to {longest} elements of {per_element:.2f} tokens"
    train = rows[: wanted.train]
    return Documents(train, _answerable(rows[wanted.train :], train=train), (note,))


def write_documents(documents: Documents, *, folder: Path) -> tuple[Path, Path]:
    """Write train.jsonl and test.jsonl, and return them; numbers become names, as those of a part may have gaps."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "test.jsonl"
    for file, rows in zip(files, (documents.train, documents.test), strict=True):
        named = ((text, f"class {label}" if label.isdigit() else label) for text, label in rows)
        lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in named)
        replace_bytes(file, "".join(lines).encode())
    return files


def _imdb(files: Sequence[Path], *, wanted: Wanted) -> Documents:
    train, test = ([(text, label) for text, label in _columns(file, ("text", "label"))] for file in files)
    seen = {text for text, _ in train}
    unseen = [row for row in test if row[0] not in seen]
    return _chosen(train, unseen, wanted=wanted, notes=(f"{len(test) - len(unseen)} test texts are in training, too",))


def _newsgroups(files: Sequence[Path], *, wanted: Wanted) -> Documents:
    columns = list(_columns(files[0], ("text", "label", "timestamp")))
    dated = sorted((row for row in columns if row[2]), key=lambda row: float(row[2]))
    cut = round(len(dated) * (1 - LATER))
    train = [(text, label) for text, label, _ in dated[:cut]]
    seen = {text for text, _ in train}
    test = [(text, label) for text, label, _ in dated[cut:] if text not in seen]
    notes = (
        f"the first {100 * (1 - LATER):.0f} % of the messages by time to learn from, the later ones to score",
        f"{len(columns) - len(dated)} without a time and {len(dated) - cut - len(test)} repeated ones are left out",
    )
    return _chosen(train, test, wanted=wanted, notes=notes)


def _novels(files: Sequence[Path], *, wanted: Wanted) -> Documents:
    shelf = shelve(read_books(files[0]), seed=wanted.seed)
    size = {"characters": CHARACTERS * wanted.lengths[-1], "seed": wanted.seed}
    train, test = (sum(map(len, side.values())) for side in (shelf.train, shelf.test))
    note = (
        f"{len(shelf.train)} classes by {shelf.by}; passages of {train} books to learn from, of {test} others to score"
    )
    learnt = passages(shelf.train, count=wanted.train, **size)
    return Documents(learnt, _answerable(passages(shelf.test, count=wanted.test, **size), train=learnt), (note,))


def _columns(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The rows of a table as texts; those without text or label are left out."""
    table = open_table(path, format=format_of(path, "auto"), on_skip=lambda *_: None)
    for column in columns:
        if column not in table.columns:
            raise missing_column(str(path), column, table.columns, f"the suite reads {', '.join(columns)}")
    for _, values in table.rows(columns):
        texts = tuple("" if value is None else str(value) for value in values)
        if texts[0].strip() and texts[1]:
            yield texts


def _chosen(train: Rows, test: Rows, *, wanted: Wanted, notes: tuple[str, ...]) -> Documents:
    """Take documents that are longer than the shortest input, as all lengths read the others alike."""
    shortest = SELDOM * wanted.lengths[0]
    sides = []
    for rows, count, side in ((train, wanted.train, 0), (test, wanted.test, 1)):
        long = [row for row in rows if len(row[0]) > shortest]
        order = np.random.default_rng((wanted.seed, side)).permutation(len(long))[:count]
        sides.append([long[index] for index in order])
        if len(long) < count:
            notes += (f"only {len(long)} {('training', 'test')[side]} documents have {shortest:,} characters",)
    return Documents(sides[0], _answerable(sides[1], train=sides[0]), notes)


def _answerable(test: Rows, *, train: Rows) -> Rows:
    """Leave out what has an answer that nothing teaches, as happens with few documents."""
    learnt = {label for _, label in train}
    return [row for row in test if row[1] in learnt]
