"""A classification task from the standard library: is a passage of prose a docstring or a comment?

What tells them apart is how they are written (a summary line in the imperative, a remark that trails off), so the
order of the words counts. Whole modules are held out for development: neither the training passages nor the text for
pretraining hold any of theirs, and a passage that stands in a training module too (licences, copies) is left out.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from sortyard.data.examples import Examples
from sortyard.data.glue import Task
from sortyard.data.order import SPLIT_STREAM
from sortyard.data.skips import SkipLog
from sortyard.data.stdlib import StdlibDocument, stdlib_corpus
from sortyard.durable import replace_bytes

TEXT, TRAIN, DEV = "text.jsonl", "train.jsonl", "dev.jsonl"
KINDS = ("comment", "docstring")
_MIN_CHARACTERS, _MAX_CHARACTERS = 40, 300
_DEV_SHARE = 0.2
_SEED = 0


@dataclass(frozen=True)
class Passage:
    """The beginning of a docstring or comment block.

    Attributes:
        text: 40 to 300 characters on one line.
        kind: its label, one of `KINDS`.
        module: where it comes from.
    """

    text: str
    kind: str
    module: str


@dataclass(frozen=True)
class StdlibTask:
    """The task with the text that may be pretrained on.

    Attributes:
        documents: every module but those held out.
        train: their passages.
        dev: passages of the modules held out.
    """

    documents: tuple[StdlibDocument, ...]
    train: tuple[Passage, ...]
    dev: tuple[Passage, ...]


def make_stdlib_task(documents: Iterable[StdlibDocument]) -> StdlibTask:
    """Hold out whole modules with about a fifth of the prose, and cut the rest and theirs into passages."""
    every = list(documents)
    held_out = _held_out_modules(every)
    known = [document for document in every if document.module not in held_out]
    unseen = [document for document in every if document.module in held_out]
    text = "\n".join(" ".join(part.text.split()) for document in known for part in document.parts)
    dev = (passage for passage in _passages(unseen) if passage.text not in text)
    return StdlibTask(documents=tuple(known), train=tuple(_passages(known)), dev=tuple(dev))


def write_stdlib_files(folder: Path) -> None:
    """Write the text to pretrain on and the task as JSON lines; do nothing where they are already.

    Args:
        folder: created where missing; gets text.jsonl (text, module), train.jsonl and dev.jsonl (text, label, module).
    """
    if (folder / DEV).is_file():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    task = make_stdlib_task(stdlib_corpus())
    _write(folder / TEXT, [{"text": document.text, "module": document.module} for document in task.documents])
    for name, passages in ((TRAIN, task.train), (DEV, task.dev)):
        _write(folder / name, [{"text": one.text, "label": one.kind, "module": one.module} for one in passages])


def stdlib_examples(task: Task) -> tuple[Examples, Examples]:
    """Return the training and the development examples of the running Python, as examples of a custom task."""
    made = _made()
    task = replace(task, label_names=KINDS)
    return _examples(made.train, task=task), _examples(made.dev, task=task)


@cache
def _made() -> StdlibTask:
    return make_stdlib_task(stdlib_corpus())


def _held_out_modules(documents: Sequence[StdlibDocument]) -> set[str]:
    sizes = {document.module: len(document.text) for document in documents}
    modules, budget = sorted(sizes), _DEV_SHARE * sum(sizes.values())
    chosen: set[str] = set()
    for index in np.random.default_rng((_SEED, SPLIT_STREAM)).permutation(len(modules)):
        size = sizes[modules[index]]
        if size <= budget / 4:  # no module may be a large share of what is left
            chosen.add(modules[index])
            budget -= size
    return chosen


def _passages(documents: Iterable[StdlibDocument]) -> Iterator[Passage]:
    """Cut the parts of documents to passages, none of them twice."""
    seen: set[str] = set()
    for document in documents:
        for part in document.parts:
            text = _beginning(" ".join(part.text.split()))
            if part.kind in KINDS and len(text) >= _MIN_CHARACTERS and text not in seen:
                seen.add(text)
                yield Passage(text, part.kind, document.module)


def _beginning(text: str) -> str:
    """The first 300 characters at most, cut at a space."""
    return text if len(text) <= _MAX_CHARACTERS else text[: text.rfind(" ", 0, _MAX_CHARACTERS)]


def _examples(passages: Sequence[Passage], *, task: Task) -> Examples:
    return Examples(
        task=task,
        texts=[passage.text for passage in passages],
        pairs=None,
        labels=np.array([KINDS.index(passage.kind) for passage in passages], dtype=np.int64),
        places=[f"{passage.module}:{number}" for number, passage in enumerate(passages, start=1)],
        skipped=SkipLog(),
    )


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    replace_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
