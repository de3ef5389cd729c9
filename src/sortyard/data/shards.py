"""Token shards: made from text by `prepare_shards`, read piece by piece from disk by `TokenShards`."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from sortyard.data.prepare import OnProgress, prepare_shards
from sortyard.data.shard_blocks import REMEDY, BlockReader, ShardFile, num_blocks
from sortyard.data.shard_format import (
    INDEX_NAME,
    NPY_HEADER_BYTES,
    OFFSET_BYTES,
    Shard,
    ShardIndex,
    Verify,
    check_shards,
    read_index,
    tokenizer_sha256,
)
from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["OnProgress", "ShardIndex", "TokenShards", "prepare_shards"]


class TokenShards:
    """Documents as token ids, one after another, read from disk as they are asked for.

    In memory are the shards' names and sizes only. What is read is compared with its checksum first, so that a file
    that is damaged, cut short or removed is an `InputError` that names it, whenever it happens.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.index = index
        self._token_bytes = np.dtype(index.dtype).itemsize
        self._first_document = list(accumulate((shard.num_documents for shard in index.shards), initial=0))
        self._first_token = list(accumulate((shard.num_tokens for shard in index.shards), initial=0))
        files = [_files(folder, shard, token_bytes=self._token_bytes) for shard in index.shards]
        self._token_files, self._offset_files = [tokens for tokens, _ in files], [offsets for _, offsets in files]
        self._reader = BlockReader()

    @classmethod
    def open(
        cls, folder: str | Path, *, tokenizer: "PreTrainedTokenizerFast | None" = None, verify: Verify = "auto"
    ) -> Self:
        """Open a folder of finished shards.

        Args:
            folder: what `prepare_shards` wrote to.
            tokenizer: refuse shards that were made with another one.
            verify: what to compare at once, beside what is compared when it is read.

        Raises:
            InputError: there are no shards, they are unfinished or damaged, or the tokenizer is another one.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index is None:
            raise InputError(f"{folder}: there are no token shards here (no {INDEX_NAME}); prepare the data first")
        if not index.complete:
            raise InputError(
                f"{folder}: preparing these shards did not finish; run it again, it goes on where it stopped"
            )
        if tokenizer is not None and tokenizer_sha256(tokenizer) != index.tokenizer_sha256:
            raise InputError(f"{folder}: these shards were made with another tokenizer; prepare them again elsewhere")
        check_shards(folder, index, verify=verify)
        return cls(folder, index)

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return self._first_document[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, special tokens not being among them."""
        return self._first_token[-1]

    def offsets(self, first: int, end: int) -> NDArray[np.int64]:
        """Return where each of the documents `first` to `end` - 1 begins among all tokens, and where the last one ends.

        Returns:
            [end - first + 1] numbers of tokens.

        Raises:
            IndexError: there are no such documents.
            InputError: a file is damaged; the message names it.
        """
        found = np.empty(end - first + 1, dtype=np.int64)
        for shard, begin, stop in _parts(self._first_document, first, end):
            to = self._first_document[shard] + begin - first
            found[to : to + stop - begin + 1] = self._shard_offsets(shard, begin, stop) + self._first_token[shard]
        return found

    def tokens(self, first: int, end: int) -> NDArray[np.integer]:
        """Return the tokens `first` to `end` - 1 of all.

        Raises:
            IndexError: there are no such tokens.
            InputError: a file is damaged; the message names it.
        """
        parts = [
            self._reader.read(self._token_files[shard], begin * self._token_bytes, stop * self._token_bytes)
            for shard, begin, stop in _parts(self._first_token, first, end)
        ]
        return np.frombuffer(b"".join(parts), dtype=self.index.dtype)

    def document(self, index: int) -> NDArray[np.integer]:
        """Return the tokens of document `index`."""
        first, end = self.offsets(index, index + 1).tolist()
        return self.tokens(first, end)

    def _shard_offsets(self, shard: int, first: int, end: int) -> NDArray[np.int64]:
        file = self._offset_files[shard]
        begin, stop = NPY_HEADER_BYTES + OFFSET_BYTES * first, NPY_HEADER_BYTES + OFFSET_BYTES * (end + 1)
        found = np.frombuffer(self._reader.read(file, begin, stop), dtype="<i8")
        if found[0] < 0 or found[-1] > self.index.shards[shard].num_tokens or (found[1:] <= found[:-1]).any():
            raise InputError(f"{file.path}: its numbers are out of order: damaged; {REMEDY}")
        return found


def _files(folder: Path, shard: Shard, *, token_bytes: int) -> tuple[ShardFile, ShardFile]:
    """Return the files of a shard's tokens and offsets."""
    sizes = shard.sizes(token_bytes)
    sums = "" if shard.checksums is None else str(folder / shard.checksums)
    tokens, offsets = sizes[shard.tokens], sizes[shard.documents]
    return (
        ShardFile(str(folder / shard.tokens), tokens, sums, 0),
        ShardFile(str(folder / shard.documents), offsets, sums, num_blocks(tokens)),
    )


def _parts(borders: list[int], first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range of all shards' numbers into each shard's own: (shard, first, end)."""
    if not 0 <= first < end <= borders[-1]:
        raise IndexError(f"{first} to {end} of {borders[-1]}")
    shard = bisect_right(borders, first) - 1
    while first < end:
        stop = min(end, borders[shard + 1])
        yield shard, first - borders[shard], stop - borders[shard]
        first, shard = stop, shard + 1
