"""Processes that speak with each other in JSON values: few words, seldom, and never in training's own groups."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from sortyard.errors import LostProcessError, first_line

OF_CONNECTIONS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class Peers:
    """What processes act together by, each call made by all of them, in the same order; here the one of a run alone.

    Values are JSON's.
    """

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any] | None:
        """Everyone's value in the order of ranks, at rank 0; None elsewhere."""
        return [value]

    def share(self, value: Any) -> Any:
        """The value of rank 0."""
        return value

    def barrier(self) -> None:
        """Wait for everyone."""
        self.gather(None)
        self.share(None)


ALONE = Peers()


class Group(Peers):
    """Processes of a gloo group that nothing else uses.

    A checkpoint that is written in a thread speaks while training does: two threads in one group would take each
    other's messages, or wait for each other for ever.

    Args:
        group: made for this alone, on the CPU.
    """

    def __init__(self, group: "dist.ProcessGroup"):
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
        return cls(dist.new_group(backend="gloo", timeout=timedelta(days=7)))

    def gather(self, value: Any) -> list[Any] | None:
        """Everyone's value in the order of ranks, at rank 0; None elsewhere."""
        content = _encoded(value)
        with told_of_losses([""]):  # all errors are of connections
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(content)]), group=self.group)
            padded = torch.zeros(int(torch.cat(lengths).max()), dtype=torch.uint8)
            padded[: len(content)] = content
            found = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
            dist.gather(padded, found, dst=self.first, group=self.group)
        return None if found is None else [_decoded(each[: int(n)]) for each, n in zip(found, lengths, strict=True)]

    def share(self, value: Any) -> Any:
        """The value of rank 0."""
        content = _encoded(value)
        with told_of_losses([""]):  # all errors are of connections
            length = torch.tensor([len(content)])
            dist.broadcast(length, src=self.first, group=self.group)
            content = content if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, src=self.first, group=self.group)
        return _decoded(content)


@contextmanager
def told_of_losses(words: Sequence[str] = OF_CONNECTIONS) -> Iterator[None]:
    """Turn the error of an exchange, where another process is gone, into one that says so.

    Args:
        words: one of which is in the messages of such errors, besides those of torch's own type; gloo has none.

    Raises:
        LostProcessError: another process is gone or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        is_of_connections = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
        is_of_set_up = "NCCL error in" in str(error) and "ncclRemoteError" not in str(error)
        if isinstance(error, LostProcessError) or not is_of_connections or is_of_set_up:
            raise
        raise LostProcessError(
            f"another process of this run is gone or does not answer ({first_line(error).partition('. ')[0]}): end the "
            "others, then continue with `sortyard resume`"
        ) from error


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)  # pickle could run anything


def _decoded(content: Tensor) -> Any:
    return json.loads(bytes(content.tolist()))
