"""Dense attention over the sequences of a batch, through torch's own kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group, dense_pairs, gather_groups, make_groups, scatter_groups
from sortyard.ops.segments import Segments

# Positions of rows that sequences are taken out of; in shorter ones that costs more than their hidden pairs. On a GPU,
# where each group is a dozen launches, it does for a whole batch of 67 million pairs (device_packed_rows.json).
_LEAST_LENGTH, _LEAST_PAIRS_ON_GPU = 512, 100_000_000


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
    if window is None and _pays_by_groups(segments):
        return _attend_groups(q, k, v, segments=segments, causal=causal, dropout_p=dropout_p)
    return _attend(q, k, v, segments=segments, causal=causal, window=window, dropout_p=dropout_p)


def _attend_groups(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    *,
    segments: Segments,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "B H T K"]:
    groups = make_groups(segments, None, causal=causal, global_tokens=None)
    outputs = [
        (group, attend_group(*taken, group=group, causal=causal, dropout_p=dropout_p))
        for group, *taken in zip(groups, *(gather_groups(x, groups) for x in (q, k, v)), strict=True)
    ]
    return scatter_groups(outputs, like=q)


def _pays_by_groups(segments: Segments) -> bool:
    """Whether a mask over whole rows would hide so many pairs that it is worth taking the sequences out of them.

    A graph would be compiled anew for every batch's lengths, and an exported one would only take shorter rows; so that
    is asked first.
    """
    if torch.compiler.is_compiling() or segments.length < _LEAST_LENGTH or not segments.lengths:
        return False
    on_cpu = segments.token_index.device.type == "cpu"
    pairs = segments.batch_size * segments.length**2
    if not on_cpu and pairs < _LEAST_PAIRS_ON_GPU:
        return False
    return pairs >= 2 * dense_pairs(segments.lengths, on_cpu=on_cpu)


def attend_group(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Dense attention of sequences side by side."""
    # cuDNN plans anew for every shape, for some 10 ms, and groups have a new shape in every batch.
    with _without_cudnn():
        return _attend(q, k, v, segments=group.segments, causal=causal, window=None, dropout_p=dropout_p)


def _attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    *,
    segments: Segments,
    causal: bool,
    window: int | None,
    dropout_p: float,
) -> Float[Tensor, "B H T K"]:
    if segments.is_trivial and window is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=causal)
    mask = visible_pairs(segments, causal=causal, window=window)
    pads = (segments.ids < 0)[:, :, None]
    # A row without any key has no softmax: pads look at everything and are zeroed afterwards.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | pads)[:, None], dropout_p=dropout_p)
    return out if segments.is_trivial else out.masked_fill(pads[:, None], 0.0)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave cuDNN's attention out where another kernel is allowed; which others are stays as it is."""
    cuda = torch.backends.cuda
    was_enabled = cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    others = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    if not was_enabled or not any(enabled() for enabled in others):  # type: ignore[no-untyped-call]
        yield
        return
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(was_enabled)


def visible_pairs(segments: Segments, *, causal: bool, window: int | None = None) -> Bool[Tensor, "B T T"]:
    """Which keys each query may see at all: those of its own sequence, of its past, and of the window."""
    ids, positions = segments.ids, segments.positions
    visible: Tensor = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None]
    if causal:
        visible = visible & (positions[:, :, None] >= positions[:, None, :])
    if window is not None:
        visible = visible & ((positions[:, :, None] - positions[:, None, :]).abs() <= window)
    return visible
