"""Writing files so that a crash leaves the old content or the new, never a mixture."""

import errno
import os
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
ASIDE = ".aside-"  # how the names of unfinished files and folders begin


def aside_of(path: Path) -> Path:
    """Return where a file or folder is written before it gets its name."""
    path = path.absolute()  # "." has no name
    return path.with_name(f"{ASIDE}{path.name}")


def sync(path: Path) -> None:
    """Make a file or folder durable: a rename is safe only after what it names, and its folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path) -> None:
    """Give the finished file `aside_of(path)` its name, replacing what had it."""
    aside = aside_of(path)
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def replace_bytes(path: Path, content: bytes) -> None:
    """Give a file new content by writing aside and renaming.

    Args:
        path: the file to create or replace; its folder must exist.
        content: everything it shall hold.
    """
    aside_of(path).write_bytes(content)
    publish(path)
