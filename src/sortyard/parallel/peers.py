"""Processes that speak with each other in JSON values: few words, seldom, and never in training's own groups."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self

from sortyard.errors import LostProcessError, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class Peers(Protocol):
    """What processes need to act together. Each call is made by all of them, in the same order; values are JSON's."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, value: Any) -> list[Any] | None:
        """Everyone's value in the order of ranks, at rank 0; None elsewhere."""

    def share(self, value: Any) -> Any:
        """The value of rank 0."""

    def barrier(self) -> None:
        """Wait for everyone."""


class Alone:
    """The one process of a run."""

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any] | None:
        """The value itself."""
        return [value]

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""


ALONE = Alone()


class Group:
    """Processes of a gloo group that nothing else uses.

    A checkpoint that is written in a thread speaks while training does: two threads in one group would take each
    other's messages, or wait for each other for ever.

    Args:
        group: made for this alone, on the CPU.
    """

    def __init__(self, group: "ProcessGroup"):
        import torch.distributed as dist

        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.first = dist.get_global_rank(group, 0)

    @classmethod
    def of_all(cls) -> Self:
        """A new group of all processes, which all of them call for.

        One waits for another as long as it takes, such as for an evaluation: who is gone closes the connection, and
        who hangs is found by the watch.
        """
        import torch.distributed as dist

        return cls(dist.new_group(backend="gloo", timeout=timedelta(days=7)))

    def gather(self, value: Any) -> list[Any] | None:
        """Everyone's value in the order of ranks, at rank 0; None elsewhere."""
        import torch
        import torch.distributed as dist

        content = _encoded(value)
        with _explained():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(content)]), group=self.group)
            padded = torch.zeros(int(torch.cat(lengths).max()), dtype=torch.uint8)
            padded[: len(content)] = content
            found = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
            dist.gather(padded, found, dst=self.first, group=self.group)
        return None if found is None else [_decoded(each[: int(n)]) for each, n in zip(found, lengths, strict=True)]

    def share(self, value: Any) -> Any:
        """The value of rank 0."""
        import torch
        import torch.distributed as dist

        content = _encoded(value)
        with _explained():
            length = torch.tensor([len(content)])
            dist.broadcast(length, src=self.first, group=self.group)
            content = content if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, src=self.first, group=self.group)
        return _decoded(content)

    def barrier(self) -> None:
        """Wait for everyone."""
        self.gather(None)
        self.share(None)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of any kind of lost or silent connection
        raise _lost(error) from error


@contextmanager
def told_of_losses() -> Iterator[None]:
    """Turn the error of training's exchanges, where another process is gone, into one that says so.

    Raises:
        LostProcessError: another process is gone or does not answer.
    """
    import torch.distributed as dist

    try:
        yield
    except LostProcessError:
        raise
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in _OF_CONNECTIONS):
            raise
        raise _lost(error) from error


_OF_CONNECTIONS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # gloo has no own type


def _lost(error: RuntimeError) -> LostProcessError:
    return LostProcessError(
        f"another process of this run is gone or does not answer ({first_line(error).partition('. ')[0]}): end the "
        "others, then continue with `sortyard resume`"
    )


def _encoded(value: Any) -> "Tensor":
    import torch

    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)  # pickle could run anything


def _decoded(content: "Tensor") -> Any:
    return json.loads(bytes(content.tolist()))
