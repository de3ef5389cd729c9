"""Writing shard files so that a file under its final name is always whole."""

import errno
import hashlib
import io
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sortyard.data.shard_blocks import BlockSums
from sortyard.data.shard_format import Shard
from sortyard.durable import aside_of, publish, replace_bytes
from sortyard.errors import InputError


class ShardWriter:
    """Writes one shard straight to disk; nothing of it counts before `finish`.

    Args:
        folder: the folder of the shards.
        number: the shard's place among them, from 0.
        dtype: numpy name of the tokens' type.
    """

    def __init__(self, folder: Path, *, number: int, dtype: str) -> None:
        self.num_tokens = 0
        self._folder = folder
        self._dtype = dtype
        self._names = f"tokens-{number:05d}.bin", f"documents-{number:05d}.npy", f"checksums-{number:05d}.bin"
        self._partial = aside_of(folder / self._names[0])
        self._file: io.BufferedWriter | None = None
        self._digest = hashlib.sha256()
        self._sums = BlockSums()
        self._offsets = array("q", [0])
        self._num_texts = 0
        self._text_bytes = 0

    def add(self, tokens: NDArray[np.integer], text_bytes: int) -> None:
        """Append the tokens of one text of so many bytes; a text without tokens is only counted."""
        self._num_texts += 1
        self._text_bytes += text_bytes
        if not len(tokens):
            return
        data = tokens.astype(self._dtype).tobytes()
        with disk_errors(self._partial, len(data)):
            if self._file is None:
                self._file = self._partial.open("wb")
            self._file.write(data)
        self._digest.update(data)
        self._sums.add(data)
        self.num_tokens += len(tokens)
        self._offsets.append(self.num_tokens)

    def finish(self) -> Shard:
        """Sync the files, give them their names, and return what the index says of them."""
        tokens, documents, checksums = self._names
        with disk_errors(self._folder / tokens, self._partial.stat().st_size):
            assert self._file is not None
            self._file.close()
            publish(self._folder / tokens)
        buffer = io.BytesIO()
        np.save(buffer, np.array(self._offsets, dtype="<i8"))
        offsets = BlockSums()
        offsets.add(buffer.getvalue())
        written = {documents: buffer.getvalue(), checksums: self._sums.finish() + offsets.finish()}
        for name, data in written.items():
            write_or_explain(self._folder / name, data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
        return Shard(
            tokens=tokens,
            documents=documents,
            checksums=checksums,
            num_documents=len(self._offsets) - 1,
            num_tokens=self.num_tokens,
            num_texts=self._num_texts,
            text_bytes=self._text_bytes,
            sha256={tokens: self._digest.hexdigest(), **digests},
        )

    def discard(self) -> None:
        """Remove what is unfinished, which on a full disk also makes room."""
        if self._file is not None and not self._file.closed:
            try:
                self._file.close()
            except OSError:  # the buffer cannot be written out, and need not be
                self._file.raw.close()
        self._partial.unlink(missing_ok=True)


def write_or_explain(path: Path, data: bytes) -> None:
    """Give a file its content, or raise an `InputError` that says what the disk refused; never leave half of it."""
    with disk_errors(path, len(data)):
        replace_bytes(path, data)


@contextmanager
def disk_errors(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn what a disk refuses into a message with the path and the bytes that were to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{path}: the disk is full: {num_bytes} bytes could not be written; "
                "free some space and run the command again, it goes on where it stopped"
            ) from error
        raise InputError(f"{path}: {num_bytes} bytes cannot be written: {error.strerror}") from error
