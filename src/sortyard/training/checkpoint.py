"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong model.

A checkpoint is a folder of safetensors and JSON. It is written aside, made durable, and renamed, so a folder with a
final name is whole; digests of every file are checked on loading, because safetensors itself has none.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sortyard.durable import ASIDE, aside_of, replace_bytes, sync
from sortyard.errors import InputError

WEIGHTS, OPTIMIZER, STATE, DIGESTS = "model.safetensors", "optimizer.safetensors", "state.json", "digests.json"


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint.

    Args:
        weights: the model's parameters and persistent buffers by name.
        optimizer: the optimizer's state, see `optimizer.optimizer_tensors`.
        state: JSON values; "step" and "best_step" are read here, the rest belongs to the caller.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensors in (self.weights, self.optimizer) for tensor in tensors.values())


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds step-00000400/ and so on, and the text files `latest` and `best`.
        keep: newest checkpoints to keep; the best one of each that is kept stays besides.
        warn: told about every damaged checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, warn: Callable[[str], None]):
        self.folder = folder
        self.keep = keep
        self.warn = warn
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{ASIDE}*"):
            _remove(leftover)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        numbers = (path.name.removeprefix("step-") for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(number) for number in numbers if number.isdecimal())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, move `latest` and `best` to it, and only then remove old ones.

        Raises:
            InputError: it could not be written; earlier checkpoints are as they were.
        """
        step, best_step = int(snapshot.state["step"]), int(snapshot.state["best_step"])
        target = self.path(step)
        aside = aside_of(target)
        with _explained(target, aside, needed=snapshot.num_bytes()):
            aside.mkdir()
            _write(snapshot, aside)
            if target.exists():  # a damaged one, which the run came by again after starting from an earlier one
                self._discard(step)
            aside.rename(target)
            sync(self.folder)
            replace_bytes(self.folder / "latest", f"{target.name}\n".encode())
            if best_step:
                replace_bytes(self.folder / "best", f"{self.path(best_step).name}\n".encode())
        self._prune(step)

    def load(self, step: int) -> Snapshot | None:
        """The checkpoint of a step; None, and a warning that names the file, when it is missing or damaged."""
        folder = self.path(step)
        damaged = _first_damaged(folder)
        if damaged is not None:
            self.warn(f"{damaged} is missing or does not match its digest: checkpoint {folder.name} is not used")
            return None
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return Snapshot(load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), state)

    def load_newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            InputError: there are checkpoints, but every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            snapshot = self.load(step)
            if snapshot is not None:
                return snapshot
        if steps:
            raise InputError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; restore one from a copy, "
                "or remove the folder's content to train from the start"
            )
        return None

    def _prune(self, newest: int) -> None:
        """Keep the newest ones and their best ones; those after `newest` belong to a course that was given up."""
        past = [step for step in self.steps() if step <= newest]
        kept = set(past[-self.keep :])
        kept |= {self._best_step_of(step) for step in kept}
        for step in self.steps():
            if step not in kept:
                self._discard(step)

    def _best_step_of(self, step: int) -> int:
        try:
            return int(json.loads((self.path(step) / STATE).read_text(encoding="utf-8"))["best_step"])
        except (OSError, ValueError, KeyError):  # damaged: it protects nothing
            return 0

    def _discard(self, step: int) -> None:
        doomed = self.folder / f"{ASIDE}old-{step}"  # renamed first: a kill must not leave half a checkpoint
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)


def _write(snapshot: Snapshot, folder: Path) -> None:
    save_file(dict(snapshot.weights), folder / WEIGHTS, metadata={"format": "pt"})
    save_file(dict(snapshot.optimizer), folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(snapshot.state, indent=1, allow_nan=False), encoding="utf-8")
    (folder / DIGESTS).write_text(_digests(folder), encoding="utf-8")
    for name in (WEIGHTS, OPTIMIZER, STATE, DIGESTS):
        sync(folder / name)
    sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> str:
    return json.dumps({name: _digest(folder / name) for name in (WEIGHTS, OPTIMIZER, STATE)}, indent=1)


def _first_damaged(folder: Path) -> Path | None:
    """The first file that is missing or not what was written; the digests' file must match byte by byte itself."""
    for name in (WEIGHTS, OPTIMIZER, STATE, DIGESTS):
        if not (folder / name).is_file():
            return folder / name
    written = (folder / DIGESTS).read_bytes()
    if written == _digests(folder).encode():
        return None
    bad = [name for name in (WEIGHTS, OPTIMIZER, STATE) if _digest(folder / name).encode() not in written]
    return folder / (bad[0] if 0 < len(bad) < 3 else DIGESTS)  # all at once: it is the digests that are damaged


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _explained(target: Path, aside: Path, *, needed: int) -> Iterator[None]:
    """Turn a failed write into one message, and clear away what it left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(
            f"{target}: the checkpoint cannot be written: {_cause(error)}; it needs {needed:,} bytes and "
            f"{shutil.disk_usage(target.parent).free:,} are free. Earlier checkpoints are intact: make room, "
            "then continue with `sortyard resume`"
        ) from error


def _cause(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if full or "No space left" in str(error) else str(error)
