"""Which implementation a call uses: chosen here, once, and overridden by argument or by environment."""

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

Backend = Literal["reference", "cpu", "compiled", "triton"]

VARIABLE = "SORTYARD_BACKEND"


def available_backends(device: str | torch.device = "cpu") -> tuple[Backend, ...]:
    """The fast implementations that run on a device, best first; the first call on a CPU may build the kernels.

    Args:
        device: Device or its type.

    Returns:
        Names, the last of which ("cpu", plain torch) runs everywhere.
    """
    kind = torch.device(device).type
    if kind == "cpu" and _why_not_compiled() is None:
        return ("compiled", "cpu")
    if kind == "cuda" and find_spec("triton") is not None:
        return ("triton", "cpu")
    return ("cpu",)


def choose_backend(backend: str | None = None, *, device: str | torch.device = "cpu") -> Backend:
    """The implementation that a call uses.

    Args:
        backend: "reference" (dense from a literal relation, slow on purpose), "cpu" (plain torch on any device),
            "compiled" (own C++ kernels on a CPU), "triton" (own kernels on a GPU), or None: what the environment
            variable SORTYARD_BACKEND says, or else the best for the device. While torch.compile captures a graph, that
            is plain torch, which it can see into; a graph that finds the sequences itself, as those of torch.export do,
            holds all of `bucket_attention` as one operator, which chooses when it runs.
        device: Where the call's tensors are.

    Returns:
        The backend's name.

    Raises:
        ValueError: an unknown backend, or one that does not run here.
    """
    asked, field = backend, "backend"
    if asked is None:
        asked, field = os.environ.get(VARIABLE) or None, VARIABLE
    if asked is None:
        return "cpu" if torch.compiler.is_compiling() else available_backends(device)[0]
    names: tuple[Backend, ...] = get_args(Backend)
    for name in names:
        if name == asked:
            _check_runs(name, field=field, device=torch.device(device))
            return name
    raise ValueError(f"{field} is {asked!r}; choose one of {', '.join(names)}, or leave it out")


def _check_runs(name: Backend, *, field: str, device: torch.device) -> None:
    if name == "compiled":
        reason = _why_not_compiled() if device.type == "cpu" else f"the tensors are on {device}"
        if reason is not None:
            raise ValueError(f"{field} is 'compiled', which does not run here: {reason}; leave it out or choose 'cpu'")
    if name == "triton" and not _triton_runs(device):
        raise ValueError(
            f"{field} is 'triton', which needs triton and a CUDA device, and the tensors are on {device}; leave it out "
            "or choose 'cpu' (or set TRITON_INTERPRET=1 to interpret its kernels, which is slow)"
        )


def _triton_runs(device: torch.device) -> bool:
    from sortyard.ops.bucket_attention.triton_backend import is_available  # which imports much of this package

    runs: bool = is_available(device)
    return runs


@lru_cache(maxsize=1)
def _why_not_compiled() -> str | None:
    from sortyard.ops.bucket_attention.compiled.library import why_not

    reason: str | None = why_not()
    return reason
