"""Which tokens of which documents each row holds: found by arithmetic and a search, without a table of pieces."""

from bisect import bisect_right
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sortyard.data.documents import DocumentTokens
from sortyard.errors import InputError

SPECIALS = 2  # [CLS] and [SEP] around each piece
CHUNK_DOCUMENTS = 2048
_WINDOW = 256  # documents whose offsets are read together: as many as lie in about one block


class Layout(Protocol):
    """How a split's documents lie in rows.

    Attributes:
        num_rows: rows of the split.
        num_tokens: tokens of its documents.
    """

    num_rows: int
    num_tokens: int

    def pieces(self, row: int) -> NDArray[np.int64]:
        """Return [pieces, 2]: where each piece of a row begins and ends among all documents' tokens."""


class PackedLayout:
    """One stream of documents, cut into rows of equal width wherever a row ends.

    A document of L tokens takes L + 2 slots of the stream, its [CLS], its tokens and its [SEP], and a row takes
    width - 2 slots: a document that goes on from the row before, or into the next one, needs another [CLS] or [SEP]
    there. So row r begins at slot r * (width - 2), and the document there is found by a search in the documents'
    offsets. Only the places of the runs are held in memory.

    Args:
        documents: the documents.
        runs: [runs, 2] which of them, as `split_documents` returns it.
        width: tokens of a row, at least 8.
    """

    def __init__(self, documents: DocumentTokens, runs: NDArray[np.int64], *, width: int) -> None:
        self._documents = documents
        self._inner = width - SPECIALS
        self._first: list[int] = runs[:, 0].tolist()
        self._end: list[int] = runs[:, 1].tolist()
        self._slots = [self._slots_of(first, end) for first, end in runs.tolist()]  # among those of all documents
        sizes = [end - first for first, end in self._slots]
        self._before = list(accumulate(sizes, initial=0))  # slots of the split before each run
        self._num_slots = self._before[-1] - 1  # the last [SEP] must not make a row of its own
        self.num_tokens = self._before[-1] - SPECIALS * int(np.diff(runs).sum())
        self.num_rows = -(-self._num_slots // self._inner)

    def pieces(self, row: int) -> NDArray[np.int64]:
        """Return [pieces, 2]: where each piece of a row begins and ends among all documents' tokens."""
        slot, end = row * self._inner, min((row + 1) * self._inner, self._num_slots)
        found = []
        while slot < end:
            run = bisect_right(self._before, slot) - 1
            stop = min(end, self._before[run + 1])
            shift = self._slots[run][0] - self._before[run]
            found += self._pieces_between(slot + shift, stop + shift, run=run)
            slot = stop
        return np.concatenate(found)

    def _pieces_between(self, slot: int, stop: int, *, run: int) -> list[NDArray[np.int64]]:
        document, offsets = self._window_at(slot, run=run)
        found = []
        while True:
            end = document + len(offsets) - 1
            first = offsets[:-1] + SPECIALS * np.arange(document, end) + 1  # slot of each document's first token
            until = int(np.searchsorted(first, stop))
            limits = np.array([[slot], [stop]]) - first[:until]
            cuts = offsets[:until] + np.clip(limits, 0, np.diff(offsets[: until + 1]))  # [2, documents]
            found.append(cuts.T[cuts[0] < cuts[1]])
            if int(offsets[-1]) + SPECIALS * end >= stop:
                return found
            document, offsets = end, self._documents.offsets(end, min(end + _WINDOW, self._end[run]))

    def _window_at(self, slot: int, *, run: int) -> tuple[int, NDArray[np.int64]]:
        """Search a run for the document at a slot; returns it and the offsets from there on that were read with it.

        The place is guessed from the share of slots, and every other time by halves, which bounds how often.
        """
        low, high = self._first[run], self._end[run]
        low_slot, high_slot = self._slots[run]
        halve = False
        while low < high:
            share = (slot - low_slot) * (high - low) // (high_slot - low_slot)
            guess = (low + high) // 2 if halve else low + share
            begin = max(low, guess - _WINDOW // 2)
            end = min(high, begin + _WINDOW)
            offsets = self._documents.offsets(begin, end)
            first, after = int(offsets[0]) + SPECIALS * begin, int(offsets[-1]) + SPECIALS * end
            if slot < first:
                high, high_slot = begin, first
            elif slot >= after:
                low, low_slot = end, after
            else:
                slots = offsets[:-1] + SPECIALS * np.arange(begin, end)
                place = int(np.searchsorted(slots, slot, side="right")) - 1
                return begin + place, offsets[place:]
            halve = not halve
        raise InputError("the shards' offsets of documents contradict one another: damaged; prepare the shards again")

    def _slots_of(self, first: int, end: int) -> tuple[int, int]:
        if end - first == 1:
            begin, stop = self._documents.offsets(first, end).tolist()
        else:
            begin, stop = (
                int(self._documents.offsets(first, first + 1)[0]),
                int(self._documents.offsets(end - 1, end)[1]),
            )
        return begin + SPECIALS * first, stop + SPECIALS * end


class SeparateLayout:
    """Each document begins a row of its own, and is cut where the row ends.

    The offsets of all documents are read once, to count rows; a number for every 2,048 documents is held in memory.

    Args:
        documents: the documents.
        runs: [runs, 2] which of them, as `split_documents` returns it.
        width: tokens of a row, at least 8.
    """

    def __init__(self, documents: DocumentTokens, runs: NDArray[np.int64], *, width: int) -> None:
        self._documents = documents
        self._inner = width - SPECIALS
        self.num_tokens = 0
        self._chunks: list[tuple[int, int]] = []
        self._rows = [0]
        for run, run_end in runs.tolist():
            for first in range(run, run_end, CHUNK_DOCUMENTS):
                end = min(first + CHUNK_DOCUMENTS, run_end)
                offsets = documents.offsets(first, end)
                self.num_tokens += int(offsets[-1] - offsets[0])
                self._chunks.append((first, end))
                self._rows.append(self._rows[-1] + int(self._rows_of(offsets).sum()))
        self.num_rows = self._rows[-1]

    def pieces(self, row: int) -> NDArray[np.int64]:
        """Return [1, 2]: where the piece of a row begins and ends among all documents' tokens."""
        chunk = bisect_right(self._rows, row) - 1
        offsets = self._documents.offsets(*self._chunks[chunk])
        before = np.concatenate([[0], np.cumsum(self._rows_of(offsets))])
        row -= self._rows[chunk]
        document = int(np.searchsorted(before, row, side="right")) - 1
        first = int(offsets[document]) + (row - int(before[document])) * self._inner
        return np.array([[first, min(first + self._inner, int(offsets[document + 1]))]], dtype=np.int64)

    def _rows_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-np.diff(offsets) // self._inner)
