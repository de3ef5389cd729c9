"""Documents as rows are packed from them: their face, and which are held out."""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sortyard.data.order import SPLIT_STREAM
from sortyard.errors import InputError

Split = Literal["train", "validation"]

MOST_RUNS = 4096


class DocumentTokens(Protocol):
    """Documents as token ids without special tokens, one after another; `TokenShards` is one."""

    @property
    def num_documents(self) -> int:
        """All documents; each has at least one token."""

    def offsets(self, first: int, end: int) -> NDArray[np.int64]:
        """Return where the documents `first` to `end` - 1 begin among all tokens, and where the last one ends."""

    def tokens(self, first: int, end: int) -> NDArray[np.integer]:
        """Return the tokens `first` to `end` - 1 of all."""


def split_documents(num_documents: int, *, split: Split, validation_fraction: float, seed: int) -> NDArray[np.int64]:
    """Return the documents of a split, in order; the two splits of one seed share none and leave none out.

    The documents are cut into as many equal stretches as there are documents to hold out, and one is drawn from each.
    Of a large corpus no more than 4,096 stretches are made, and a run of neighbours is drawn from each, so that the
    split is a small table however many documents there are.

    Args:
        num_documents: all documents.
        split: which one to return.
        validation_fraction: share of documents that is held out, 0 to 0.5; above 0 at least one document is.
        seed: chooses the held-out documents.

    Returns:
        [runs, 2] the first document of each run of neighbours, and the one after its last.

    Raises:
        InputError: the split would be empty.
    """
    num_held_out = max(1, round(validation_fraction * num_documents)) if validation_fraction > 0 else 0
    num_runs = min(num_held_out, MOST_RUNS)
    held_out = np.zeros((0, 2), dtype=np.int64)
    if num_runs:
        borders = np.arange(num_runs + 1) * num_documents // num_runs
        sizes = np.diff(np.arange(num_runs + 1) * num_held_out // num_runs)
        room = np.diff(borders) - sizes
        first = borders[:-1] + np.random.default_rng((seed, SPLIT_STREAM)).integers(0, room, endpoint=True)
        held_out = np.stack([first, first + sizes], axis=1)
    between = np.stack([np.append(0, held_out[:, 1]), np.append(held_out[:, 0], num_documents)], axis=1)
    chosen = held_out if split == "validation" else between[between[:, 0] < between[:, 1]]
    if not len(chosen):
        raise InputError(
            f"validation_fraction = {validation_fraction:g} of {num_documents} document(s) leaves none for {split}; "
            "set it above 0 for a validation split, or give more documents (or a smaller max_document_characters)"
        )
    return chosen
