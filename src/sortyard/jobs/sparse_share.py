"""How much of a text stands in sequences that are long enough for attention to be sparse."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sortyard.data.packing import PackedRows

LOOKED_AT = 200


@dataclass(frozen=True)
class SparseShare:
    """What the first rows of a text are, for a model with bucket attention.

    Attributes:
        dense_up_to: Tokens of the longest sequence that is dense.
        tokens: Share of the tokens that stand in longer ones.
        sparsity: Share of the query-key pairs of all sequences that attention leaves out.
    """

    dense_up_to: int
    tokens: float
    sparsity: float

    def text(self) -> str:
        """Writes it in a sentence, with what to do where nothing is sparse."""
        remedy = "" if self.tokens > 0 else ": it learns nothing; give longer texts or a longer --sequence-length"
        pairs = f"; {self.sparsity:.0%} of all query-key pairs are left out" if self.tokens > 0 else ""
        return (
            f"{self.tokens:.0%} of the tokens stand in texts longer than {self.dense_up_to:,} tokens, where attention "
            f"is sparse{remedy}{pairs}"
        )


def sequence_lengths(rows: "PackedRows") -> NDArray[np.int64]:
    """Returns the tokens of every sequence in the first `LOOKED_AT` rows."""
    pieces = [np.diff(rows.row(index).boundaries) for index in range(min(len(rows), LOOKED_AT))]
    return np.concatenate(pieces).astype(np.int64)


def sparse_share(rows: "PackedRows", *, model: Any) -> SparseShare | None:
    """Looks at the first `LOOKED_AT` rows.

    Args:
        rows: Packed rows.
        model: A sortyard model on the device to train on, which decides what is dense.

    Returns:
        The shares, or None for a model without bucket attention.
    """
    from sortyard.model.attention.bucket import BucketCore
    from sortyard.ops import expected_sparsity

    core = next((module for module in model.modules() if isinstance(module, BucketCore)), None)
    if core is None:
        return None
    spec = core.spec_on(model.device)
    lengths, counts = np.unique(sequence_lengths(rows), return_counts=True)
    left_out = np.array([expected_sparsity(spec, int(length), core.causal) for length in lengths])
    tokens, pairs = lengths * counts, lengths.astype(np.float64) ** 2 * counts
    return SparseShare(
        dense_up_to=spec.dense_up_to,
        tokens=float(tokens[lengths > spec.dense_up_to].sum() / tokens.sum()),
        sparsity=float((pairs * left_out).sum() / pairs.sum()),
    )
