"""Writing files so that a crash leaves the old content or the new, never a mixture."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file or folder durable: a rename is safe only after what it names, and its folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_bytes(path: Path, content: bytes) -> None:
    """Give a file new content by writing aside and renaming.

    Args:
        path: the file to create or replace; its folder must exist.
        content: everything it shall hold.
    """
    aside = path.with_name(f".aside-{path.name}")
    aside.write_bytes(content)
    sync(aside)
    aside.replace(path)
    sync(path.parent)
