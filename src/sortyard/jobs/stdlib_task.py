"""Files made of the running Python's own documentation: text to pretrain on, and a task to fine-tune on.

The task: which family of modules does a passage come from? Development passages come from modules of which the
training files, those of pretraining included, hold nothing.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sortyard.data.stdlib import StdlibDocument

TEXT, TRAIN, DEV = "text.jsonl", "train.jsonl", "dev.jsonl"
OTHER = "other"
PASSAGE_CHARACTERS = 300
DEV_SHARE = 0.2


def write_stdlib_files(folder: Path) -> None:
    """Writes `text.jsonl`, `train.jsonl` and `dev.jsonl`; does nothing where they are there already.

    Args:
        folder: Created where missing.
    """
    from sortyard.data.stdlib import stdlib_corpus

    if (folder / DEV).is_file():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    documents = list(stdlib_corpus())
    dev = dev_modules(documents)
    train = [document for document in documents if document.module not in dev]
    _write(folder / TEXT, ({"text": document.text} for document in train))
    seen = {text for _, text in _passages(train)}
    _write(folder / TRAIN, ({"text": text, "label": label} for label, text in _passages(train)))
    held_out = _passages(document for document in documents if document.module in dev)
    _write(folder / DEV, ({"text": text, "label": label} for label, text in held_out if text not in seen))


def dev_modules(documents: "Sequence[StdlibDocument]") -> set[str]:
    """Chooses whole modules for development, about a fifth of each family's passages, the same at every call."""
    families: dict[str, list[StdlibDocument]] = defaultdict(list)
    for document in documents:
        if document.family != OTHER:
            families[document.family].append(document)
    chosen: set[str] = set()
    for members in families.values():
        sizes = {document.module: len(document.text) for document in members}
        wanted, total = DEV_SHARE * sum(sizes.values()), 0
        for module in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if total + sizes[module] <= 1.1 * wanted:
                chosen.add(module)
                total += sizes[module]
    return chosen


def _passages(documents: "Iterable[StdlibDocument]") -> Iterator[tuple[str, str]]:
    """Joins the short parts of a module into passages of a few sentences; yields (family, passage)."""
    for document in documents:
        if document.family == OTHER:
            continue
        parts: list[str] = []
        for part in document.parts:
            parts.append(part)
            if sum(map(len, parts)) >= PASSAGE_CHARACTERS:
                yield document.family, "\n".join(parts)
                parts = []


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    aside.replace(path)
