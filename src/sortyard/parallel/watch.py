"""Who of several processes hangs: each leaves a sign of life, and the others read it when nothing moves any more."""

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class NoWatch:
    """The one process of a run is watched by its person."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def beat(self, what: str, *, limited: bool = True) -> None:
        """Do nothing."""


class Watch(NoWatch):
    """While entered, ends this process when it has done one thing for too long, and names the one it waits for.

    A file of each process holds what it is doing; a thread touches it, so that a process that was stopped or is gone
    shows by the file's age. It works whatever the collective that hangs, and whether it would raise or not.

    Args:
        folder: seen by all processes.
        rank: number of this process.
        size: number of processes.
        timeout_seconds: how long one thing may take.
    """

    def __init__(self, folder: Path, *, rank: int, size: int, timeout_seconds: float):
        self._folder = folder
        self._rank, self._size = rank, size
        self._timeout = timeout_seconds
        self._what, self._since, self._limited = "starting", time.monotonic(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.beat("starting", limited=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._file(self._rank).unlink(missing_ok=True)

    def beat(self, what: str, *, limited: bool = True) -> None:
        """Say what this process is about to do.

        Args:
            what: in the words of a message, such as "computing step 12".
            limited: whether it may take no longer than the time-out.
        """
        self._what, self._since, self._limited = what, time.monotonic(), limited
        self._file(self._rank).write_text(what, encoding="utf-8")

    def suspects(self) -> list[str]:
        """The processes that have not been heard of, or else those that do something else than this one."""
        own_age = self._file(self._rank).stat().st_mtime
        silent, elsewhere = [], []
        for rank in range(self._size):
            if rank == self._rank:
                continue
            try:
                what = self._file(rank).read_text(encoding="utf-8")
                age = own_age - self._file(rank).stat().st_mtime
            except OSError:
                silent.append(f"process {rank} is gone")
                continue
            if age > max(2.0, self._timeout / 2):
                silent.append(f"process {rank} has not been heard of for {age:.0f} s (it was {what})")
            elif what != self._what:
                elsewhere.append(f"process {rank} is still {what}")
        return silent or elsewhere

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._timeout / 10)):
            self._file(self._rank).touch()
            waited = time.monotonic() - self._since
            if self._limited and waited > self._timeout:
                self._give_up(waited)

    def _give_up(self, waited: float) -> None:
        reasons = self.suspects()
        time.sleep(0.2 * self._rank)  # the first one left speaks for all: it ends, and torchrun ends the others
        print(
            f"error: process {self._rank} of {self._size} has been {self._what} for {waited:.0f} s "
            f"(parallel.timeout_seconds is {self._timeout:g}): "
            f"{', '.join(reasons) or 'all others are there, too: the exchange itself hangs'}. "
            "Continue with `sortyard resume`",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread may hang in a call that nothing interrupts

    def _file(self, rank: int) -> Path:
        return self._folder / f"process-{rank}"
