"""Dense attention over the sequences of a batch, through torch's own kernels."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sortyard.ops.segments import Segments


def dense_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    *,
    segments: Segments,
    causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention of every query over all visible keys of its own sequence.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        segments: The batch's sequences.
        causal: Whether a query sees only keys at or before it.
        window: Half-width of a sliding window in positions, at least 0; no window when left out.
        dropout_p: Probability of dropping a weight, in [0, 1).

    Returns:
        One output a query; zeros at pads.

    Raises:
        ValueError: a negative window.
    """
    if window is not None and window < 0:
        raise ValueError(f"window is {window}; it must be at least 0, or be left out")
    if segments.is_trivial and window is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal)
    mask = visible_pairs(segments, causal=causal, window=window)
    pads = (segments.ids < 0)[:, :, None]
    # A row without any key has no softmax: pads look at everything and are zeroed afterwards.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | pads)[:, None], dropout_p=dropout_p)
    return out if segments.is_trivial else out.masked_fill(pads[:, None], 0.0)


def visible_pairs(segments: Segments, *, causal: bool, window: int | None = None) -> Bool[Tensor, "B T T"]:
    """Which keys each query may see at all: those of its own sequence, of its past, and of the window."""
    ids, positions = segments.ids, segments.positions
    visible: Tensor = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    if causal:
        visible = visible & (positions[:, :, None] >= positions[:, None, :])
    if window is not None:
        visible = visible & ((positions[:, :, None] - positions[:, None, :]).abs() <= window)
    return visible
