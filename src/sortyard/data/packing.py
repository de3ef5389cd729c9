"""Packing documents into rows: which piece of which document stands where, as one table of integers."""

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sortyard.data.order import SPLIT_STREAM
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError

MIN_PIECE = 16  # a shorter gap at the end of a row is padded rather than filled with a scrap of a document
_SPECIALS = 2  # [CLS] and [SEP] around each piece


class DocumentTokens(Protocol):
    """Documents as token ids without special tokens; `TokenShards` is one."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""

    def piece(self, document: int, start: int, length: int) -> NDArray[np.integer]:
        """Return `length` tokens of a document, from its token `start` on."""


class PackedRow(NamedTuple):
    """One row, without its padding.

    Attributes:
        ids: [n] int64 token ids, special tokens included, n at most the sequence length.
        boundaries: [pieces + 1] where the pieces begin and end: 0, ..., n.
    """

    ids: NDArray[np.int64]
    boundaries: NDArray[np.int64]


class PackedRows:
    """The rows of one split; documents are split whole, and cut into pieces only where a row ends.

    Args:
        documents: the token shards.
        sequence_length: tokens of a row, at least 8.
        vocabulary: gives the ids of [CLS] and [SEP].
        split: train rows or held-out rows.
        validation_fraction: share of documents that is held out, 0 to 0.5.
        seed: chooses the held-out documents.
        packing: False puts each piece in a row of its own.

    Raises:
        InputError: the split would hold no document.
    """

    def __init__(
        self,
        documents: DocumentTokens,
        *,
        sequence_length: int,
        vocabulary: Vocabulary,
        split: Literal["train", "validation"] = "train",
        validation_fraction: float = 0.0,
        seed: int = 0,
        packing: bool = True,
    ) -> None:
        lengths = np.asarray(documents.lengths)
        chosen = split_documents(len(lengths), split=split, validation_fraction=validation_fraction, seed=seed)
        self.sequence_length = sequence_length
        self.num_documents = len(chosen)
        self._documents = documents
        self._vocabulary = vocabulary
        table = _pack(lengths[chosen], width=sequence_length, share_rows=packing)
        self._document = chosen[table.document]
        self._start, self._length = table.start, table.length
        num_rows = int(table.row[-1]) + 1
        self._first_piece = np.searchsorted(table.row, np.arange(num_rows + 1))

    def __len__(self) -> int:
        return len(self._first_piece) - 1

    @property
    def num_tokens(self) -> int:
        """Real tokens of all rows, special tokens included."""
        return int(self._length.sum()) + _SPECIALS * len(self._length)

    def row(self, index: int) -> PackedRow:
        """Return row `index`: `[CLS] piece [SEP] [CLS] piece [SEP] ...`."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        pieces = range(self._first_piece[index], self._first_piece[index + 1])
        boundaries = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum(self._length[pieces.start : pieces.stop] + _SPECIALS, out=boundaries[1:])
        ids = np.empty(boundaries[-1], dtype=np.int64)
        ids[boundaries[:-1]] = self._vocabulary.cls_id
        ids[boundaries[1:] - 1] = self._vocabulary.sep_id
        for piece, first, end in zip(pieces, boundaries[:-1], boundaries[1:], strict=True):
            ids[first + 1 : end - 1] = self._documents.piece(
                int(self._document[piece]), int(self._start[piece]), int(self._length[piece])
            )
        return PackedRow(ids, boundaries)


def split_documents(
    num_documents: int, *, split: Literal["train", "validation"], validation_fraction: float, seed: int
) -> NDArray[np.int64]:
    """Return the documents of a split, in shard order; the two splits of one seed share none.

    Raises:
        InputError: the split would be empty.
    """
    held_out = max(1, round(validation_fraction * num_documents)) if validation_fraction > 0 else 0
    order = np.random.default_rng((seed, SPLIT_STREAM)).permutation(num_documents)
    chosen = np.sort(order[:held_out] if split == "validation" else order[held_out:])
    if not len(chosen):
        raise InputError(
            f"validation_fraction = {validation_fraction:g} of {num_documents} document(s) leaves none for {split}; "
            "set it above 0 for a validation split, or give more documents (or a smaller max_document_characters)"
        )
    return chosen


class _Table(NamedTuple):
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    row: NDArray[np.int64]


def _pack(lengths: NDArray[np.int64], *, width: int, share_rows: bool) -> _Table:
    """Fill rows greedily in order.

    The loop is over documents only: the full rows inside a long document are one entry with a count, laid out
    afterwards.
    """
    inner = width - _SPECIALS
    runs: list[tuple[int, int, int, int, int]] = []  # document, start, piece length, row, how many rows like it
    row, used = 0, 0
    for document, length in enumerate(lengths.tolist()):
        start = 0
        if used and (not share_rows or width - used < MIN_PIECE + _SPECIALS):
            row, used = row + 1, 0
        if used:
            start = min(length, width - used - _SPECIALS)
            runs.append((document, 0, start, row, 1))
            used += start + _SPECIALS
            if start == length:
                continue
            row, used = row + 1, 0
        full, rest = divmod(length - start, inner)
        if full:
            runs.append((document, start, inner, row, full))
            row += full
        if rest:
            runs.append((document, start + full * inner, rest, row, 1))
            used = rest + _SPECIALS
    columns = np.array(runs, dtype=np.int64).T
    document_of, start_of, length_of, row_of, count = columns
    entry = np.repeat(np.arange(len(runs)), count)
    rank = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count, count)
    return _Table(document_of[entry], start_of[entry] + rank * inner, length_of[entry], row_of[entry] + rank)
