"""Loading the splits of a labelled task from the user's files or from the hub."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sortyard.data.examples import Examples, RawExample, build_examples
from sortyard.data.glue import HUB_NAME, SPLIT_WORDS, TASKS, Task
from sortyard.data.hub import stream_hub
from sortyard.data.locate import FORMATS, format_of, missing_column
from sortyard.data.options import TaskOptions
from sortyard.data.order import SPLIT_STREAM
from sortyard.data.skips import OnSkip, SkipLog
from sortyard.data.stdlib import STDLIB
from sortyard.data.stdlib_task import stdlib_examples
from sortyard.data.tables import open_table
from sortyard.errors import InputError

__all__ = ["TASKS", "Split", "Task", "load_examples", "task_of"]

Split = Literal["train", "dev", "dev_mismatched", "test"]
_HUB = "hub"


def task_of(options: TaskOptions) -> Task:
    """Return the task that options describe; a custom classification task has no label names before it is loaded."""
    if options.name != "custom":
        task = TASKS[options.name]
    elif options.type == "regression":
        limits = (float("-inf"), float("inf"))
        task = Task("custom", ("text",), (), ("label",), (), ("spearman", "pearson"), label_range=limits)
    else:
        task = Task("custom", ("text",), (), ("label",), (), ("accuracy", "f1_macro"))
    return replace(
        task,
        text_columns=_chosen(options.text_column, task.text_columns),
        pair_columns=_chosen(options.text_pair_column, task.pair_columns),
        label_columns=_chosen(options.label_column, task.label_columns),
    )


def _chosen(column: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return usual if column is None else (column,)


def load_examples(options: TaskOptions, split: Split, *, label_names: tuple[str, ...] = ()) -> Examples:
    """Load a split.

    Where `data` is a folder, the split is the file whose name says so (`sst2_train.parquet`, `train.tsv`,
    `validation.jsonl`); files that name the task go first. Where `data` is a file, that is the training split. With no
    development file, a stratified share of the training examples is held out by `split_seed`, and the training split
    is the rest. `stdlib` is the task that the running Python brings along.

    Args:
        options: the task and its files.
        split: dev_mismatched is MNLI's second development set; test may have no labels.
        label_names: the classes of a custom task where a model knows them; by default the training split tells.

    Raises:
        InputError: the split cannot be found, or a row of it cannot be used; the message names file and row.
    """
    task = task_of(options)
    if label_names and task.type == "classification" and not task.label_names:
        task = replace(task, label_names=label_names)
    if _is_stdlib(options):
        train, dev = stdlib_examples(task)
        return _subset(train, options) if split == "train" else dev
    if split in ("test", "dev_mismatched"):
        return _load(options, task=_with_labels(options, task), split=split, labelled=split != "test", known=True)
    has_dev = options.data == _HUB or _dev_file(options) is not None
    if split == "dev" and has_dev:
        return _load(options, task=_with_labels(options, task), split="dev", labelled=True, known=True)
    train = _load(options, task=task, split="train", labelled=True, known=bool(label_names))
    if not has_dev:
        kept, held_out = _stratified(train, fraction=options.dev_fraction, seed=options.split_seed)
        train = train.take(held_out if split == "dev" else kept)
    return _subset(train, options) if split == "train" else train


def _is_stdlib(options: TaskOptions) -> bool:
    kind = (options.name, options.type, options.data)
    return kind == ("custom", "classification", STDLIB) and not Path(STDLIB).exists()


def _subset(train: Examples, options: TaskOptions) -> Examples:
    if options.max_train_examples is None:
        return train
    order = np.random.default_rng((options.split_seed, SPLIT_STREAM)).permutation(len(train))
    return train.take(np.sort(order[: options.max_train_examples]))


def _with_labels(options: TaskOptions, task: Task) -> Task:
    """Discover a custom task's labels from its training split, so that every split numbers them alike."""
    if task.type == "regression" or task.label_names:
        return task
    return _load(options, task=task, split="train", labelled=True, known=False).task


def _load(options: TaskOptions, *, task: Task, split: Split, labelled: bool, known: bool) -> Examples:
    if options.data == _HUB:
        rows, source = _hub_rows(task, split), f"{HUB_NAME} {task.name} {split}"
        return build_examples(rows, task=task, labelled=labelled, known=known, source=source)
    path = _split_file(options, split)
    skipped = SkipLog()
    rows = _file_rows(path, options, task=task, labelled=labelled, on_skip=skipped.add)
    examples = build_examples(rows, task=task, labelled=labelled, known=known, source=str(path))
    return replace(examples, skipped=skipped.joined(examples.skipped))


def _file_rows(
    path: Path, options: TaskOptions, *, task: Task, labelled: bool, on_skip: OnSkip
) -> Iterator[RawExample]:
    kind = format_of(path, options.format)
    if kind == "txt":
        raise InputError(f"{path}: a text file has no labels; give a jsonl, tsv, csv or parquet file")
    table = open_table(path, format=kind, on_skip=on_skip, headerless=task.headerless)
    wanted = [_pick(table.columns, task.text_columns, file=path, field="text_column")]
    if task.is_pair:
        wanted.append(_pick(table.columns, task.pair_columns, file=path, field="text_pair_column"))
    has_label = labelled or any(name in table.columns for name in task.label_columns)
    if has_label:
        wanted.append(_pick(table.columns, task.label_columns, file=path, field="label_column"))
    for row, values in table.rows(tuple(wanted)):
        pair = values[1] if task.is_pair else None
        yield RawExample(values[0], pair, values[-1] if has_label else None, str(path), row)


def _hub_rows(task: Task, split: Split) -> Iterator[RawExample]:
    if task.name == "custom":
        raise InputError('data: "hub" holds the nine GLUE tasks; a custom task needs a file or folder')
    name = {"train": "train", "dev": "validation", "test": "test"}.get(split, "validation_mismatched")
    if task.name == "mnli" and split in ("dev", "test"):
        name += "_matched"
    for number, row in enumerate(stream_hub(HUB_NAME, config=task.name, split=name), start=1):
        columns, label = list(row), f"{HUB_NAME} {task.name} {name}"
        text = row[_pick(columns, task.text_columns, file=label, field="text_column")]
        pair = row[_pick(columns, task.pair_columns, file=label, field="text_pair_column")] if task.is_pair else None
        yield RawExample(text, pair, row.get("label"), label, number)


def _pick(columns: list[str], accepted: tuple[str, ...], *, file: Path | str, field: str) -> str:
    for name in accepted:
        if name in columns:
            return name
    raise missing_column(str(file), accepted[0], columns, field)


def _dev_file(options: TaskOptions) -> Path | None:
    if options.dev is not None:
        return _existing(options.dev, "dev")
    folder = Path(options.data).expanduser()
    return _find(folder, options.name, "dev") if folder.is_dir() else None


def _split_file(options: TaskOptions, split: Split) -> Path:
    if split == "dev" and options.dev is not None:
        return _existing(options.dev, "dev")
    if split == "test" and options.test is not None:
        return _existing(str(options.test), "test")
    data = _existing(options.data, "data")
    if data.is_dir():
        found = _find(data, options.name, split)
        if found is None:
            names = ", ".join(sorted(path.name for path in data.iterdir())[:12]) or "nothing"
            raise InputError(f"{data}: no file of the split {split!r} of {options.name}; the folder holds {names}")
        return found
    if split != "train":
        raise InputError(f"{split}: data is the single file {data}; give the file of that split")
    return data


def _existing(path: str, field: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        hub = ' (or "hub" for a GLUE task)' if field == "data" else ""
        raise InputError(f"{field}: {found}: there is no such file or folder{hub}")
    return found


def _find(folder: Path, task: str, split: Split) -> Path | None:
    """Find the file of a split by its name; ranked by the order of the accepted words, a name with the task first."""
    ranked = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in FORMATS or not path.is_file():
            continue
        stem = re.sub(r"[^a-z0-9]+", "_", path.name[: path.name.index(".")].lower())
        stem = stem.removesuffix("_subset")
        for rank, word in enumerate(SPLIT_WORDS[split]):
            if stem in (word, f"{task}_{word}"):
                ranked.append((stem == word, rank, path))
    return min(ranked)[2] if ranked else None


def _stratified(examples: Examples, *, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the examples into (kept, held out), with every class's share alike; both in file order."""
    generator = np.random.default_rng((seed, SPLIT_STREAM))
    labels: NDArray[Any] = np.zeros(len(examples)) if examples.labels is None else examples.labels
    if examples.task.type == "regression":
        labels = np.zeros(len(examples))
    held_out: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out.append(members[: min(len(members) - 1, max(1, round(fraction * len(members))))])
    dev = np.sort(np.concatenate(held_out))
    if not len(dev):
        raise InputError(f"{examples.places[0]}: too few examples to hold out a development split; give dev")
    return np.setdiff1d(np.arange(len(examples)), dev), dev
