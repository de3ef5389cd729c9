"""Threads that stand for the processes of a run, so that what they do together is tested in one process."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE_SECONDS = 60


class ThreadPeers:
    """One of several threads; values pass through JSON, as between processes."""

    def __init__(self, rank: int, *, barrier: threading.Barrier, board: list[str]):
        self.rank = rank
        self.size = barrier.parties
        self._barrier = barrier
        self._board = board

    def gather(self, value: Any) -> list[Any] | None:
        self._board[self.rank] = json.dumps(value)
        self.barrier()
        found = [json.loads(text) for text in self._board]
        self.barrier()
        return found if self.rank == 0 else None

    def share(self, value: Any) -> Any:
        if self.rank == 0:
            self._board[0] = json.dumps(value)
        self.barrier()
        found = json.loads(self._board[0])
        self.barrier()
        return found

    def barrier(self) -> None:
        self._barrier.wait(PATIENCE_SECONDS)


def together(size: int, work: Callable[[ThreadPeers], Any]) -> list[Any]:
    """What work returns, or the error that it raises, on each of several peers."""
    barrier, board = threading.Barrier(size), [""] * size

    def one(rank: int) -> Any:
        try:
            return work(ThreadPeers(rank, barrier=barrier, board=board))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
