"""What processes send each other, counted as it happens: our own exchanges, FSDP2's and the pipeline's."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from sortyard.parallel import KINDS

_OPERATORS = {  # torch's operator: its kind, and which of its arguments to count
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::allreduce_coalesced_": ("all_reduce", 0),
    "c10d::allgather_": ("all_gather", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 0),
    "c10d::reduce_scatter_": ("reduce_scatter", 1),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "c10d::alltoall_": ("all_to_all", 1),
    "c10d::alltoall_base_": ("all_to_all", 1),
    "c10d::send": ("send", 0),
}


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process hands to collectives while it is entered, backward passes included.

    An all-reduce counts its tensor, an all-gather what comes out, a reduce-scatter and an all-to-all what goes in, a
    send what is sent. What crosses a wire depends on the algorithm: a ring of n moves (n - 1) / n of it, for an
    all-reduce twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = dict.fromkeys(KINDS, 0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it where it is an exchange."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes by again, as operators on local tensors
        found = _OPERATORS.get(func._schema.name)
        if found is not None:
            kind, place = found
            self.bytes[kind] += _num_bytes(args[place])
        return func(*args, **(kwargs or {}))


def _num_bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else sum(map(_num_bytes, value))
