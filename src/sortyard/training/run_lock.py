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
_held: set[Path] = set()  # by this process, whose own second lock on a file would be refused too


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; entered again by the same process, it changes nothing.

    The operating system holds the lock and frees it when the process ends, however it ends, so none is ever stale. The
    file that carries it stays, as another process may be about to lock the same one.

    Args:
        folder: an existing folder.

    Raises:
        InputError: another process has it.
    """
    path = folder.resolve()
    if path in _held or fcntl is None:
        yield
        return
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, folder)
        _held.add(path)
        yield
    finally:
        _held.discard(path)
        os.close(descriptor)


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
