"""Packing documents into rows of `[CLS] piece [SEP] [CLS] piece [SEP] ...`."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sortyard.data.documents import DocumentTokens, Split, split_documents
from sortyard.data.layouts import SPECIALS, Layout, PackedLayout, SeparateLayout
from sortyard.data.vocabulary import Vocabulary


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

    A row is read when it is asked for, and found without a table of rows, so memory stays flat.

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
        split: Split = "train",
        validation_fraction: float = 0.0,
        seed: int = 0,
        packing: bool = True,
    ) -> None:
        runs = split_documents(documents.num_documents, split=split, validation_fraction=validation_fraction, seed=seed)
        self.sequence_length = sequence_length
        self.num_documents = int(np.diff(runs).sum())
        self._documents = documents
        self._vocabulary = vocabulary
        layout = PackedLayout if packing else SeparateLayout
        self._layout: Layout = layout(documents, runs, width=sequence_length)

    def __len__(self) -> int:
        return self._layout.num_rows

    @property
    def num_tokens(self) -> int:
        """Tokens of the split's documents; the special tokens of rows are not among them."""
        return self._layout.num_tokens

    def row(self, index: int) -> PackedRow:
        """Return row `index`.

        Raises:
            IndexError: there is no such row.
            InputError: a shard that it is read from is damaged; the message names the file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        pieces = self._layout.pieces(index)
        boundaries = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum(pieces[:, 1] - pieces[:, 0] + SPECIALS, out=boundaries[1:])
        ids = np.empty(boundaries[-1], dtype=np.int64)
        is_token = np.ones(len(ids), dtype=np.bool_)
        is_token[boundaries[:-1]] = is_token[boundaries[1:] - 1] = False
        ids[boundaries[:-1]] = self._vocabulary.cls_id
        ids[boundaries[1:] - 1] = self._vocabulary.sep_id
        ids[is_token] = np.concatenate([self._documents.tokens(first, end) for first, end in _joined(pieces)])
        return PackedRow(ids, boundaries)


def _joined(pieces: NDArray[np.int64]) -> list[list[int]]:
    """Join pieces that lie side by side, which most do, so that they are read at once."""
    gaps = np.flatnonzero(pieces[1:, 0] != pieces[:-1, 1])
    first = pieces[np.append(0, gaps + 1), 0]
    end = pieces[np.append(gaps, len(pieces) - 1), 1]
    found: list[list[int]] = np.stack([first, end], axis=1).tolist()
    return found
