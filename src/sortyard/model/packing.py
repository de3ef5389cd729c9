"""What transformers' callers say besides the arguments that we name: packed rows in its words, and nothing unknown."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

# Boundaries once more, which say nothing beside `cu_seq_lens_q` or positions.
_REPEATED = frozenset({"cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
# Trainer's and generation's; an encoder has neither a loss nor a cache.
_HARMLESS = frozenset({"num_items_in_batch", "use_cache"})


def find_boundaries(
    cu_seqlens: Int[Tensor, " boundaries"] | None,
    others: Mapping[str, Any],
    *,
    positions: Int[Tensor, "B T"] | None,
    is_masked: bool,
) -> Int[Tensor, " boundaries"] | None:
    """Settle on the boundaries of packed sequences, and refuse what would be left out otherwise.

    Args:
        cu_seqlens: boundaries in our own words.
        others: keyword arguments that the model does not name; None counts as left out.
        positions: place of each token as the caller gave it. Without boundaries and a mask a sequence starts wherever
            they do not rise, as `DataCollatorWithFlattening` numbers them; but not in a traced graph.
        is_masked: whether the batch has an attention mask.

    Returns:
        The boundaries over the flattened B * T positions; None if every row is one sequence.

    Raises:
        TypeError: an argument that nobody reads.
        ValueError: boundaries given twice.
    """
    given = {name: value for name, value in others.items() if value is not None and name not in _HARMLESS}
    theirs = given.pop("cu_seq_lens_q", None)
    if cu_seqlens is not None and theirs is not None:
        raise ValueError("cu_seqlens and cu_seq_lens_q are two names of one thing; give one of them")
    boundaries = theirs if cu_seqlens is None else cu_seqlens
    is_told = boundaries is not None or positions is not None
    unknown = sorted(name for name in given if not (is_told and name in _REPEATED))
    if unknown:
        raise TypeError(f"the model takes no argument {', '.join(unknown)}; leave it out, or check how it is spelt")
    if boundaries is not None or positions is None or is_masked or torch.compiler.is_compiling():
        return boundaries
    return _restarts(positions)


def _restarts(positions: Int[Tensor, "B T"]) -> Int[Tensor, " boundaries"] | None:
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[:, 1:] = positions[:, 1:] <= positions[:, :-1]
    first = starts.flatten().nonzero()[:, 0]
    return None if len(first) <= len(positions) else torch.cat([first, first.new_full((1,), positions.numel())])
