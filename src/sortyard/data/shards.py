"""Token shards: made from text by `prepare_shards`, read through memory maps by `TokenShards`."""

import bisect
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from sortyard.data.prepare import OnProgress, prepare_shards
from sortyard.data.shard_format import INDEX_NAME, ShardIndex, check_shard, read_index, tokenizer_sha256
from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["OnProgress", "ShardIndex", "TokenShards", "prepare_shards"]


class TokenShards:
    """Documents as token ids, read through memory maps."""

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.index = index
        self._tokens = [np.memmap(folder / shard.tokens, dtype=index.dtype, mode="r") for shard in index.shards]
        self._offsets = [np.load(folder / shard.documents, allow_pickle=False) for shard in index.shards]
        self._first = list(accumulate((shard.num_documents for shard in index.shards), initial=0))
        self._lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets])

    @classmethod
    def open(
        cls, folder: str | Path, *, tokenizer: "PreTrainedTokenizerFast | None" = None, verify: bool = True
    ) -> Self:
        """Open a folder of finished shards.

        Args:
            folder: what `prepare_shards` wrote to.
            tokenizer: refuse shards that were made with another one.
            verify: compare every file with its digest, which reads them once.

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
        for shard in index.shards:
            check_shard(folder, shard, token_bytes=np.dtype(index.dtype).itemsize, digests=verify)
        return cls(folder, index)

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return self._first[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, special tokens not being among them."""
        return self.index.num_tokens

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[num_documents] tokens of each document."""
        return self._lengths

    def document(self, index: int) -> NDArray[np.integer]:
        """Return the tokens of document `index`."""
        return self.piece(index, 0, int(self._lengths[index]))

    def piece(self, document: int, start: int, length: int) -> NDArray[np.integer]:
        """Return `length` tokens of a document, from its token `start` on."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        shard = bisect.bisect_right(self._first, document) - 1
        first = int(self._offsets[shard][document - self._first[shard]]) + start
        return self._tokens[shard][first : first + length]
