"""Labelled examples: columns found by name, labels checked row by row, faults named with file and row."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sortyard.data.glue import Task
from sortyard.data.skips import OnSkip, SkipLog, text_fault
from sortyard.errors import InputError

Labels = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """A split of a task.

    Attributes:
        task: the task, with its label names known.
        texts: the (first) texts.
        pairs: the second texts; None for tasks of single texts.
        labels: [n] int64 classes or float32 targets; None where a test split hides them.
        places: "file:row" of each example.
        skipped: what was left out and why.
    """

    task: Task
    texts: list[str]
    pairs: list[str] | None
    labels: Labels | None
    places: list[str]
    skipped: SkipLog

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: NDArray[np.int64]) -> "Examples":
        """Return the chosen examples, in the order given."""
        return replace(
            self,
            texts=[self.texts[index] for index in chosen],
            pairs=None if self.pairs is None else [self.pairs[index] for index in chosen],
            labels=None if self.labels is None else self.labels[chosen],
            places=[self.places[index] for index in chosen],
        )


def digest_of(*splits: Examples) -> str:
    """Digest splits: any other text, label or order gives another one.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for split in splits:
        for column in (split.texts, split.pairs or ()):
            for text in column:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        digest.update(b"" if split.labels is None else split.labels.tobytes())
    return digest.hexdigest()[:16]


class RawExample(NamedTuple):
    """A row before its label is understood."""

    text: Any
    pair: Any
    label: Any
    file: str
    row: int


def build_examples(raw: Iterator[RawExample], *, task: Task, labelled: bool, known: bool, source: str) -> Examples:
    """Check every row and turn its label into a number.

    Args:
        raw: the rows.
        task: says which labels there are; a custom classification task with no label names has them discovered: the
            integers 0 ... n - 1 keep their numbers, strings are numbered in sorted order.
        labelled: False accepts missing and hidden labels, as in a test split.
        known: the label names are final, though there may be fewer than two classes in this split.
        source: what to call the split in messages.

    Raises:
        InputError: a label is missing, unknown, hidden, not finite or of another kind than the others (with file and
            row), there is only one class, or
            no row is left.
    """
    skipped = SkipLog()
    rows = [row for row in raw if _has_text(row, is_pair=task.is_pair, on_skip=skipped.add)]
    if not rows:
        reasons = f": skipped {skipped.describe()}" if skipped.total else ""
        raise InputError(f"{source}: no example is left{reasons}")
    labels: Labels | None = None
    if labelled or all(_is_visible(row.label) for row in rows):
        if task.type == "regression":
            labels = np.array([_target(row) for row in rows], dtype=np.float32)
        else:
            if not task.label_names:
                task = replace(task, label_names=discover_labels(rows, source=source))
            labels = np.array([_class_number(row, task.label_names) for row in rows], dtype=np.int64)
            if not known and len(np.unique(labels)) < 2:
                raise _one_class(source, len(rows), task.label_names[int(labels[0])])
    return Examples(
        task=task,
        texts=[row.text for row in rows],
        pairs=[row.pair for row in rows] if task.is_pair else None,
        labels=labels,
        places=[f"{row.file}:{row.row}" for row in rows],
        skipped=skipped,
    )


def discover_labels(rows: list[RawExample], *, source: str) -> tuple[str, ...]:
    """Return the label names of a custom classification task: "0" ... "n - 1" for integers, else sorted strings."""
    _refuse_mixed_kinds(rows)
    values = {_plain(row) for row in rows}
    integers = {_as_integer(value) for value in values}
    if None in integers:
        return tuple(sorted(str(value) for value in values))
    numbers = sorted(number for number in integers if number is not None)
    if numbers[0] < 0:
        hidden = next(row for row in rows if _as_integer(_plain(row)) == numbers[0])
        raise InputError(_label_message(hidden, "a hidden or negative label cannot be trained on"))
    if len(numbers) < 2:
        raise _one_class(source, len(rows), str(numbers[0]))
    if numbers != list(range(len(numbers))):
        found = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        raise InputError(
            f"{source}: the integer labels are {found}; use 0 ... {len(numbers) - 1} without gaps, or strings"
        )
    return tuple(map(str, numbers))


def _refuse_mixed_kinds(rows: list[RawExample]) -> None:
    """Keep 1 and "1" from becoming two classes of one name, and 1 beside "a" from being read as a class number."""
    first = type(_plain(rows[0]))
    for row in rows:
        if not isinstance(_plain(row), first):
            kind = "an integer" if first is int else "a string"
            raise InputError(_label_message(row, f"every label before it is {kind}; write this one as {kind} too"))


def _has_text(row: RawExample, *, is_pair: bool, on_skip: OnSkip) -> bool:
    for value in (row.text, row.pair) if is_pair else (row.text,):
        reason = text_fault(value)
        if reason is not None:
            on_skip(reason, row.file, row.row)
            return False
    return True


def _one_class(source: str, count: int, name: str) -> InputError:
    return InputError(f"{source}: all {count} examples have one class only ({name!r}); a classifier needs at least two")


def _label_message(row: RawExample, problem: str) -> str:
    return f"{row.file}:{row.row}: label {row.label!r}: {problem}"


def _is_visible(label: Any) -> bool:
    return not (label is None or _as_integer(label) == -1 or (isinstance(label, str) and label.strip() in ("", "-")))


def _as_integer(value: Any) -> int | None:
    """Read an integer from a number or its spelling; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number.is_integer() else None


def _plain(row: RawExample) -> int | str:
    label = row.label
    if label is None or (isinstance(label, str) and not label.strip()):
        raise InputError(_label_message(row, "the label is missing"))
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, bool):
        return str(label).lower()
    number = _as_integer(label)
    if number is None:
        raise InputError(
            _label_message(row, "a class is an integer or a string; set type: regression for real numbers")
        )
    return number


def _class_number(row: RawExample, names: tuple[str, ...]) -> int:
    value = _plain(row)
    if str(value) in names:
        return names.index(str(value))
    number = _as_integer(value)
    numbers = [_as_integer(name) for name in names]
    are_numbers = any(each is not None for each in numbers)  # then a number is a name, never a place among the names
    if number is not None and are_numbers and number in numbers:
        return numbers.index(number)
    if number is not None and not are_numbers and 0 <= number < len(names):
        return number
    if number == -1:
        raise InputError(_label_message(row, "the label is hidden, as in a test split; training and dev need it"))
    known = ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
    places = "" if are_numbers else f"0 ... {len(names) - 1} or "
    raise InputError(_label_message(row, f"expected {places}one of {known}"))


def _target(row: RawExample) -> float:
    try:
        value = float(row.label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(_label_message(row, "a regression target is a finite number"))
    return value
