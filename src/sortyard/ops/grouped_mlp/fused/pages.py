"""A hint to the operating system about large buffers."""

import ctypes
import sys
from functools import lru_cache

from torch import Tensor

_HUGE = 2 * 1024 * 1024  # bytes of a huge page
_MADV_HUGEPAGE = 14
# Below this, malloc hands out memory that was used before, and there is nothing to fault in.
_WORTH_IT = 8 * _HUGE


def advise_huge_pages(buffer: Tensor) -> Tensor:
    """Ask Linux to back a fresh, large CPU buffer with 2 MiB pages; elsewhere do nothing.

    The gradient of all experts' weights is allocated anew every step, and writing it costs one page fault per 4 KiB;
    with few tokens an expert, that shows in the layer's time. Only a hint: nothing depends on its success.

    Args:
        buffer: a contiguous tensor that nothing was written to yet.

    Returns:
        The same tensor.
    """
    if buffer.device.type == "cpu" and buffer.nbytes >= _WORTH_IT and (advise := _madvise()) is not None:
        start = -(-buffer.data_ptr() // _HUGE) * _HUGE
        end = (buffer.data_ptr() + buffer.nbytes) // _HUGE * _HUGE
        advise(start, end - start, _MADV_HUGEPAGE)
    return buffer


@lru_cache(maxsize=1)
def _madvise() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
