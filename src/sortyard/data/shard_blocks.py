"""Reading parts of shard files by position: in flat memory, with every block compared with its checksum.

Files are read rather than mapped: a mapped file that is cut short ends the process without a word, and its pages count
as the process' own memory.
"""

import os
import zlib
from array import array
from functools import lru_cache
from pathlib import Path

import numpy as np

from sortyard.errors import InputError

BLOCK_BYTES = 4096
SUM_BYTES = 4  # a CRC-32 for every block: a thousandth of what it protects
OPEN_FILES = 192  # below the 256 that the strictest of common systems allow a process

REMEDY = "put the original file back, after which an interrupted run can be resumed, or prepare the shards again"


def num_blocks(num_bytes: int) -> int:
    """Return how many blocks a file has; the last one may be shorter."""
    return -(-num_bytes // BLOCK_BYTES)


class BlockSums:
    """Checksums of the blocks of a file that is written piece by piece."""

    def __init__(self) -> None:
        self._sums = array("I")
        self._sum = 0
        self._filled = 0

    def add(self, data: bytes) -> None:
        """Append the next bytes of the file."""
        rest = memoryview(data)
        while len(rest):
            part = rest[: BLOCK_BYTES - self._filled]
            self._sum = zlib.crc32(part, self._sum)
            self._filled += len(part)
            if self._filled == BLOCK_BYTES:
                self._close()
            rest = rest[len(part) :]

    def finish(self) -> bytes:
        """Return the checksums of all blocks, little-endian uint32."""
        if self._filled:
            self._close()
        return np.array(self._sums, dtype="<u4").tobytes()

    def _close(self) -> None:
        self._sums.append(self._sum)
        self._sum = self._filled = 0


class BlockReader:
    """Reads byte ranges of files; the files read last stay open."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=OPEN_FILES)(_open)

    def read(self, path: Path, first: int, num_bytes: int) -> bytes:
        """Return `num_bytes` of a file from byte `first` on.

        Raises:
            InputError: the file is missing, too short or unreadable; the message names it.
        """
        try:
            data = os.pread(self._open(path).descriptor, num_bytes, first)
        except FileNotFoundError as error:
            raise InputError(f"{path}: this file of the shards is missing; {REMEDY}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
        if len(data) < num_bytes:
            raise InputError(f"{path}: cut short: there is nothing from byte {first + len(data)} on; {REMEDY}")
        return data

    def read_checked(self, path: Path, first: int, num_bytes: int, *, size: int, sums: Path, first_sum: int) -> bytes:
        """Return `num_bytes` of a file from byte `first` on, if the blocks that they lie in are as written.

        Args:
            path: the file.
            first: first byte wanted.
            num_bytes: bytes wanted.
            size: bytes of the whole file.
            sums: the file of checksums.
            first_sum: place in it of the file's first block.

        Raises:
            InputError: a file is missing, too short, unreadable or changed; the message names it.
        """
        block, end = first // BLOCK_BYTES, num_blocks(first + num_bytes)
        begin = block * BLOCK_BYTES
        data = self.read(path, begin, min(end * BLOCK_BYTES, size) - begin)
        known = self.read(sums, (first_sum + block) * SUM_BYTES, (end - block) * SUM_BYTES)
        found = [zlib.crc32(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
        if found != np.frombuffer(known, dtype="<u4").tolist():
            raise InputError(f"{path}: its contents differ from the checksums in {sums.name}: damaged; {REMEDY}")
        return data[first - begin : first - begin + num_bytes]


class _Opened:
    """A file's descriptor, closed with the last reference."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open(path: Path) -> _Opened:
    return _Opened(os.open(path, os.O_RDONLY))
