"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong model.

A checkpoint is a folder of safetensors and JSON, to which each process of a run adds the pieces of tensors that it
owns. It is written aside, made durable, and renamed, so a folder with a final name is whole; digests of every file are
checked on loading, because safetensors itself has none. Any layout of processes reads what any other wrote.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from sortyard.durable import ASIDE, FULL, aside_of, replace_bytes, sync
from sortyard.errors import InputError
from sortyard.parallel.peers import ALONE, Peers
from sortyard.training.digests import DIGESTS, digest_of, is_intact, list_files, write_digests
from sortyard.training.pieces import Box, Piece, PieceFiles, write_pieces

Kind = Literal["model", "optimizer"]
KINDS: tuple[Kind, ...] = ("model", "optimizer")
STATE = "state.json"
REPLACED = f"{ASIDE}replaced-"


@dataclass(frozen=True)
class Snapshot:
    """What one process adds to a checkpoint.

    Args:
        weights: pieces of the model's parameters and persistent buffers.
        optimizer: pieces of the optimizer's state, see `optimizer.optimizer_tensors`.
        state: JSON values, taken from the first process; "step" and "best_step" are read here, the rest belongs to the
            caller.
    """

    weights: Sequence[Piece]
    optimizer: Sequence[Piece]
    state: Mapping[str, Any]

    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(piece.tensor.nbytes for pieces in (self.weights, self.optimizer) for piece in pieces)

    def copied(self) -> Self:
        """The same in memory of its own on the CPU, which training leaves alone."""
        weights, optimizer = ([piece.copied() for piece in pieces] for pieces in (self.weights, self.optimizer))
        return replace(self, weights=weights, optimizer=optimizer, state=json.loads(_json(self.state)))


class Checkpoint:
    """A whole checkpoint, read by the box.

    Args:
        folder: a checkpoint's, already checked.
        names: its files.

    Raises:
        InputError: a file is not what a checkpoint holds.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder = folder
        self._names = names
        self._files: dict[Kind, PieceFiles] = {}
        try:
            self.state: Mapping[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{folder / STATE}: cannot be read ({error})") from error

    def names(self, kind: Kind) -> list[str]:
        """Names of the tensors."""
        return self._of(kind).names()

    def shape(self, kind: Kind, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        return self._of(kind).shape(name)

    def read(self, kind: Kind, name: str, box: Box | None = None) -> Tensor:
        """A box of a tensor (offset and shape; None is all of it), in memory of its own."""
        return self._of(kind).read(name, box)

    def tensors(self, kind: Kind) -> dict[str, Tensor]:
        """All tensors, whole, by name."""
        return {name: self.read(kind, name) for name in self.names(kind)}

    def _of(self, kind: Kind) -> PieceFiles:
        if kind not in self._files:
            self._files[kind] = PieceFiles(self.folder / name for name in self._names if name.startswith(kind))
        return self._files[kind]


class CheckpointStore:
    """The checkpoints of one run.

    Entered as a context, it does not leave before a save that is under way has come to its end.

    Args:
        folder: holds step-00000400/ and so on, and the text files `latest` and `best`; one that all processes see.
        keep: newest checkpoints to keep; the best one of each that is kept stays besides.
        warn: told about every damaged checkpoint, on the first process.
        peers: the processes of the run, each of which makes every call.
        in_background: whether `save` returns as soon as it has copied the tensors, and a thread writes them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        warn: Callable[[str], None],
        peers: Peers = ALONE,
        in_background: bool = False,
    ):
        self.folder = folder
        self.keep = keep
        self.peers = peers
        self._warn = warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if in_background else None
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            self.warn(str(failure))  # what broke the run off matters more
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def warn(self, message: str) -> None:
        """Tell the first process's person."""
        if self.peers.rank == 0:
            self._warn(message)

    def prepare(self) -> None:
        """Make the folder, and clear away what a kill left; only for who holds the run's lock."""
        if self.peers.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
        self.peers.barrier()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        numbers = (path.name.removeprefix("step-") for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(number) for number in numbers if number.isdecimal())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, snapshot: Snapshot, *, on_durable: Callable[[], object] = lambda: None) -> None:
        """Write a checkpoint, move `latest` and `best` to it, and only then remove old ones.

        Waits for the save before it. In the background, an error of this one is raised by the next call, or by `wait`.

        Args:
            snapshot: this process's part.
            on_durable: called on the first process when the checkpoint is there, in the thread that wrote it.

        Raises:
            InputError: it could not be written by one of the processes; earlier checkpoints are as they were.
        """
        self.wait()
        if self._writer is None:
            self._save(snapshot, on_durable)
        else:
            self._saving = self._writer.submit(self._save, snapshot.copied(), on_durable)

    def wait(self) -> None:
        """Return when no save is under way; raises its error."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def load(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None, and a warning that names the file, when it is missing or damaged."""
        folder, peers = self.path(step), self.peers
        listed, trouble = peers.share(list_files(folder) if peers.rank == 0 else None)
        if trouble is None:
            mine = list(listed)[peers.rank :: peers.size]
            bad = [name for name in mine if not is_intact(folder / name, listed[name])]
            found = peers.gather(bad)
            first = peers.share(next((names[0] for names in found or [] if names), None))
            trouble = first and f"{folder / first} is missing or does not match its digest"
        if trouble is not None:
            self.warn(f"{trouble}: checkpoint {folder.name} is not used")
            return None
        return Checkpoint(folder, list(listed))

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            InputError: there are checkpoints, but every one is damaged.
        """
        steps: list[int] = self.peers.share(self.steps())
        for step in reversed(steps):
            checkpoint = self.load(step)
            if checkpoint is not None:
                return checkpoint
        if steps:
            raise InputError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; restore one from a copy, "
                "or remove the folder's content to train from the start"
            )
        return None

    def _save(self, snapshot: Snapshot, on_durable: Callable[[], object]) -> None:
        target = self.path(int(snapshot.state["step"]))
        aside = aside_of(target)
        needed = sum(self.peers.gather(snapshot.num_bytes()) or [])
        is_first = self.peers.rank == 0
        try:
            self._together(lambda: aside.mkdir() if is_first else None)
            digests = self._together(lambda: self._write(snapshot, aside))
            self._together(lambda: self._publish(snapshot.state, aside, digests) if is_first else None)
        except _WriteError as error:
            if is_first:
                self._clear()
            free = shutil.disk_usage(self.folder).free
            message = (
                f"{target}: the checkpoint cannot be written: {error}; it needs {needed:,} bytes and {free:,} are "
                "free. Earlier checkpoints are intact: make room, then continue with `sortyard resume`"
            )
            raise InputError(self.peers.share(message)) from error
        if is_first:
            self._prune(int(snapshot.state["step"]))
            on_durable()

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Do work on every process; where it fails on one, it fails on all of them.

        Returns:
            What came out on each, at the first process; nothing on the others.
        """
        own: Exception | None = None
        try:
            outcome = {"value": work()}
        except Exception as error:  # of any kind: the others wait for a word
            who = f"process {self.peers.rank}: " if self.peers.size > 1 else ""
            own, outcome = error, {"failure": who + _cause(error)}
        outcomes = self.peers.gather(outcome) or []
        failure = self.peers.share(next((each["failure"] for each in outcomes if "failure" in each), None))
        if failure is not None:
            raise _WriteError(failure) from own
        return [each["value"] for each in outcomes]

    def _write(self, snapshot: Snapshot, folder: Path) -> dict[str, str]:
        """Write this process's files; returns their digests."""
        rank, size = self.peers.rank, self.peers.size
        part = "" if size == 1 else f"-{rank + 1:05d}-of-{size:05d}"
        digests = {}
        for kind, pieces in zip(KINDS, (snapshot.weights, snapshot.optimizer), strict=True):
            path = folder / f"{kind}{part}.safetensors"
            write_pieces(pieces, path)
            sync(path)
            digests[path.name] = digest_of(path)
        return digests

    def _publish(self, state: Mapping[str, Any], aside: Path, digests: Sequence[Mapping[str, str]]) -> None:
        target = self.path(int(state["step"]))
        (aside / STATE).write_text(_json(state), encoding="utf-8")
        merged = {name: digest for each in digests for name, digest in each.items()}
        write_digests(aside, merged | {STATE: digest_of(aside / STATE)})
        for name in (STATE, DIGESTS):
            sync(aside / name)
        sync(aside)
        replaced = target.with_name(f"{REPLACED}{target.name}")
        if target.exists():  # of a run that came by again: the old one is damaged, or lacks the last evaluation
            target.rename(replaced)
        aside.rename(target)
        sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        replace_bytes(self.folder / "latest", f"{target.name}\n".encode())
        best = self.path(int(state["best_step"]))
        if best.is_dir():  # not every best step was saved
            replace_bytes(self.folder / "best", f"{best.name}\n".encode())

    def _prune(self, newest: int) -> None:
        """Keep the newest ones and their best ones; those after `newest` belong to a course that was given up."""
        past = [step for step in self.steps() if step <= newest]
        kept = set(past[-self.keep :])
        kept |= {self._best_step_of(step) for step in kept}
        for step in self.steps():
            if step in kept:
                continue
            try:
                doomed = self.path(step).with_name(f"{ASIDE}old-{self.path(step).name}")
                self.path(step).rename(doomed)  # first: a kill must not leave half a checkpoint
                shutil.rmtree(doomed)
            except OSError as error:
                self.warn(f"{self.path(step)}: an old checkpoint cannot be removed ({error}); it only takes up room")

    def _best_step_of(self, step: int) -> int:
        try:
            return int(json.loads((self.path(step) / STATE).read_text(encoding="utf-8"))["best_step"])
        except (OSError, ValueError, KeyError):  # damaged: it protects nothing
            return 0

    def _clear(self) -> None:
        for replaced in self.folder.glob(f"{REPLACED}*"):
            target = self.folder / replaced.name.removeprefix(REPLACED)
            if not target.exists():  # a kill came between two renames
                replaced.rename(target)
        for leftover in self.folder.glob(f"{ASIDE}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


class _WriteError(Exception):
    """A process could not write its part."""


def _json(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=1, allow_nan=False)


def _cause(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in FULL
    return "the disk is full" if full or "No space left" in str(error) else str(error)
