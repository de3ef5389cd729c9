"""One process at a time in a run's folder."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sortyard.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there the person has to take care
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
INHERITED = "SORTYARD_LOCKED_RUN"  # set for processes that were given the lock of the one that started them
_held: dict[Path, int] = {}  # by this process, whose own second lock on a file would be refused too


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; entered again by the same process, it changes nothing.

    The operating system holds the lock and frees it when the process ends, however it ends, so none is ever stale. The
    file that carries it stays, as another process may be about to lock the same one. A process may share its lock with
    those that it starts (`shared_lock`), which have it until the last of them ends.

    Args:
        folder: an existing folder.

    Raises:
        InputError: another process has it.
    """
    path = folder.resolve()
    if path in _held or fcntl is None or os.environ.get(INHERITED) == str(path):
        yield
        return
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, folder)
        _held[path] = descriptor
        yield
    finally:
        _held.pop(path, None)
        os.close(descriptor)


def shared_lock(folder: Path) -> tuple[dict[str, str], list[int]]:
    """What processes need to be in a folder that this one has locked: environment variables, and files to inherit."""
    path = folder.resolve()
    return {INHERITED: str(path)}, [_held[path]] if path in _held else []


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise InputError(
            f"{folder}: another process (number {owner}) is working on this run; wait for it, or end it first"
        ) from error
    except OSError as error:  # some network shares have no locks
        warnings.warn(f"{folder}: cannot be locked ({error.strerror}); let no second process resume it", stacklevel=2)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
