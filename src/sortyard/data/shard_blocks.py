"""Reading parts of shard files by position: in flat memory, with every block compared with its checksum.

Files are read rather than mapped: a mapped file that is cut short ends the process without a word, and its pages count
as the process' own memory.
"""

import os
import sys
import weakref
import zlib
from array import array
from functools import lru_cache
from typing import NamedTuple

from sortyard.errors import InputError

BLOCK_BYTES = 4096
SUM_BYTES = 4  # a CRC-32 for every block: a thousandth of what it protects
OPEN_FILES = 192  # below the 256 that the strictest of common systems allow a process

REMEDY = "put the original file back, after which an interrupted run can be resumed, or prepare the shards again"


def num_blocks(num_bytes: int) -> int:
    """Return how many blocks a file has; the last one may be shorter."""
    return -(-num_bytes // BLOCK_BYTES)


def little_endian(numbers: "array[int]") -> bytes:
    """Return numbers as they are on disk."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


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
        return little_endian(self._sums)

    def _close(self) -> None:
        self._sums.append(self._sum)
        self._sum = self._filled = 0


class ShardFile(NamedTuple):
    """A file and where the checksums of its blocks are.

    Attributes:
        path: the file.
        size: its bytes.
        sums: the file of checksums; empty where there is none.
        first_sum: place in it of the file's first block.
    """

    path: str
    size: int
    sums: str
    first_sum: int


class BlockReader:
    """Reads byte ranges of files; the files read last stay open."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=OPEN_FILES)(_open)

    def read(self, file: ShardFile, first: int, end: int) -> bytes:
        """Return the bytes `first` to `end` - 1 of a file, if the blocks that they lie in are as written.

        Raises:
            InputError: a file is missing, too short, unreadable or changed; the message names it.
        """
        if not file.sums:
            return self._bytes(file.path, first, end)
        block, end_block = first // BLOCK_BYTES, num_blocks(end)
        begin = block * BLOCK_BYTES
        data = self._bytes(file.path, begin, min(end_block * BLOCK_BYTES, file.size))
        sums = self._bytes(file.sums, (file.first_sum + block) * SUM_BYTES, (file.first_sum + end_block) * SUM_BYTES)
        found = array("I", [zlib.crc32(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)])
        if little_endian(found) != sums:
            raise InputError(f"{file.path}: its contents differ from the checksums in {file.sums}: damaged; {REMEDY}")
        return data[first - begin : end - begin]

    def _bytes(self, path: str, first: int, end: int) -> bytes:
        try:
            data = os.pread(self._open(path).descriptor, end - first, first)
        except FileNotFoundError as error:
            raise InputError(f"{path}: this file of the shards is missing; {REMEDY}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
        if len(data) < end - first:
            raise InputError(f"{path}: cut short: there is nothing from byte {first + len(data)} on; {REMEDY}")
        return data


class _Opened:
    """A file's descriptor, closed with the last reference, and also at exit, when `__del__` could no longer do it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


def _open(path: str) -> _Opened:
    return _Opened(os.open(path, os.O_RDONLY))
