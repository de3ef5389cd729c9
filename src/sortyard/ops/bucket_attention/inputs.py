"""What every call must hold, checked before any kernel reads memory by address."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_inputs(q: Tensor, **others: Tensor) -> None:
    """Refuse tensors that do not belong together.

    Args:
        q: Queries [B, H, T, K].
        **others: Keys and values under their names; of the same shape, type and device.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    if q.ndim != 4 or not q.shape[-1]:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be [B, H, T, K] with K at least 1")
    if q.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise ValueError(f"q is {q.dtype}; it must be one of {names}")
    for name, x in others.items():
        for what in ("shape", "dtype", "device"):
            own, wanted = getattr(x, what), getattr(q, what)
            if own != wanted:
                raise ValueError(f"{name} has {what} {own}, but q has {wanted}; queries, keys and values must agree")
