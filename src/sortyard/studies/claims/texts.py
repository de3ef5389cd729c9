"""The texts that the ledger trains and counts on: some of each source, and other documents held out."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sortyard.data.reading import read_texts
from sortyard.data.skips import SkipLog
from sortyard.data.stdlib_task import TEXT, write_stdlib_files
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.studies.gates.sources import WHOLE

TRAINING_CHARACTERS = 12_000_000  # of all sources together
HELD_OUT_CHARACTERS = 400_000  # of each source
HELD_OUT_OF_ONE = 50_000  # at most so much of one document is held out, so that several are
PIECE = 20_000  # long documents are cut into pieces of so many characters
STDLIB = "python"  # the domain where no text is given


def write_texts(sources: Mapping[str, str], *, folder: Path) -> tuple[str, ...]:
    """Write FOLDER/corpus/NAME.jsonl and FOLDER/held-out/NAME.jsonl of every source, unless they are there.

    Args:
        sources: A path by name; empty = the documentation of Python's own standard library.
        folder: Where they go.

    Returns:
        The names.

    Raises:
        InputError: a source cannot be read, is too short, or the folder holds the texts of other sources.
    """
    given = dict(sources)
    if not given:
        write_stdlib_files(folder / "stdlib")
        given = {STDLIB: str(folder / "stdlib" / TEXT)}
    asked = json.dumps({name: Path(path).name for name, path in given.items()}, sort_keys=True)
    marker = folder / "sources.json"
    if marker.exists():
        if marker.read_text(encoding="utf-8") != asked:
            raise InputError(f"{marker}: these are other texts than are given now; give the same, or another --out")
        return tuple(given)
    for part in ("corpus", "held-out"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, path in given.items():
        _write_source(name, path, folder=folder, characters=TRAINING_CHARACTERS // len(given))
    replace_bytes(marker, asked.encode())
    return tuple(given)


def _write_source(name: str, path: str, *, folder: Path, characters: int) -> None:
    log = SkipLog()
    documents = (row.text for row in read_texts(path, on_skip=log.add, max_document_characters=WHOLE))
    openings = (document[:HELD_OUT_OF_ONE] for document in documents)
    take(pieces(openings), characters=HELD_OUT_CHARACTERS, path=folder / "held-out" / f"{name}.jsonl")
    taken = take(pieces(documents), characters=characters, path=folder / "corpus" / f"{name}.jsonl")
    if not taken:
        raise InputError(
            f"{path}: has too little text: {HELD_OUT_CHARACTERS:,} characters, at most {HELD_OUT_OF_ONE:,} of one "
            "document, are held out, and other documents are needed to train on; give more documents"
        )


def pieces(documents: Iterable[str]) -> Iterator[str]:
    """Cut long documents into pieces."""
    for text in documents:
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]


def take(texts: Iterator[str], *, characters: int, path: Path) -> int:
    """Write texts as JSON lines until there are enough characters, or none is left; return how many were written."""
    taken = 0
    with path.open("w", encoding="utf-8") as file:
        while taken < characters and (text := next(texts, None)) is not None:
            file.write(json.dumps({"text": text}) + "\n")
            taken += len(text)
    return taken
