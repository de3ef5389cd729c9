"""Which of the nine GLUE tasks a folder holds, and how much of each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sortyard.data.glue import SPLIT_WORDS
from sortyard.data.locate import FORMATS
from sortyard.data.options import TaskOptions
from sortyard.data.tasks import load_examples
from sortyard.errors import InputError
from sortyard.evaluation.glue_sizes import OFFICIAL_DEV, OFFICIAL_TRAIN, part_of

HUB = "hub"


@dataclass(frozen=True)
class GlueTask:
    """One task as the data allows it to be measured.

    Attributes:
        name: Of the task.
        train: File of the training split, or "hub"; None where there is none.
        dev: File of the development split; None where it is held out of the training split, or on the hub.
        num_train: Training examples.
        num_dev: Examples that are scored.
        missing: Why it is not measured; "" where it is.
    """

    name: str
    train: str | None = None
    dev: str | None = None
    num_train: int = 0
    num_dev: int = 0
    missing: str = ""

    def notes(self) -> list[str]:
        """What a reader must know beside the score: parts of splits, held-out examples."""
        shares = (
            ("training", part_of(self.num_train, official=OFFICIAL_TRAIN[self.name])),
            ("development", part_of(self.num_dev, official=OFFICIAL_DEV[self.name])),
        )
        if self.dev is None and self.train != HUB:
            return [f"no development file: scored on {self.num_dev:,} held-out training examples"]
        return [f"{_percent(share)} of the {split} set" for split, share in shares if share is not None]


def read_tasks(names: Sequence[str], *, data: str) -> list[GlueTask]:
    """Find and read every task, so that a fault in a file is known before any training.

    Args:
        names: Of tasks.
        data: A folder with `rte_train.parquet`, `rte_dev.parquet`, ... or with the official folders `RTE/train.tsv`,
            ...; or "hub".

    Returns:
        The tasks, those too that cannot be measured.

    Raises:
        InputError: There is no such folder, it holds none of the tasks, or a file of one cannot be used.
    """
    folder = Path(data).expanduser()
    if data != HUB and not folder.is_dir():
        raise InputError(f"--data {data}: is no folder; give one with rte_train.parquet, rte_dev.parquet and so on")
    found = [_read(_find_task(name, folder=folder)) if data != HUB else _read(_on_hub(name)) for name in names]
    if all(task.missing for task in found):
        raise InputError(
            f"--data {data}: holds a training split of none of {', '.join(names)}; files are called "
            f"{names[0]}_train.parquet (or .tsv, .jsonl, .csv), or train.tsv in a folder {names[0]}"
        )
    return found


def _on_hub(name: str) -> GlueTask:
    return GlueTask(name, train=HUB)


def _find_task(name: str, *, folder: Path) -> GlueTask:
    train, dev = (_find_split(name, folder=folder, words=SPLIT_WORDS[split]) for split in ("train", "dev"))
    if train is None:
        return GlueTask(name, missing=f"no train split in {folder.resolve().name}/")
    return GlueTask(name, train=str(train), dev=None if dev is None else str(dev))


def _read(task: GlueTask) -> GlueTask:
    if task.missing or task.train is None:
        return task
    options = TaskOptions.model_validate({"name": task.name, "data": task.train, "dev": task.dev})
    train, dev = (len(load_examples(options, split)) for split in ("train", "dev"))
    return GlueTask(task.name, task.train, task.dev, train, dev)


def _find_split(name: str, *, folder: Path, words: Sequence[str]) -> Path | None:
    """The file whose name says task and split, or the split in a folder of the task's name; the usual words first."""
    candidates = [(rank, path) for stem, path in _files(folder, task=name) for rank, word in enumerate(words)
                  if stem == word]  # fmt: skip
    return min(candidates)[1] if candidates else None


def _files(folder: Path, *, task: str) -> Iterator[tuple[str, Path]]:
    """Data files of a task, each with the rest of its name once the task's is taken off."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _plain(path.name).replace("_", "") == task:
            yield from ((_split_name(each), each) for each in sorted(path.iterdir()) if _is_data(each))
        elif _is_data(path) and _split_name(path).startswith(f"{task}_"):
            yield _split_name(path).removeprefix(f"{task}_"), path


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in FORMATS


def _split_name(path: Path) -> str:
    return _plain(path.name.partition(".")[0]).removesuffix("_subset")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
