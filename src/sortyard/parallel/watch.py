"""Who of several processes hangs: each leaves a sign of life, and the others read it when nothing moves any more."""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

FARE_WELL = "gave-up"
WIDTH = 120  # of what a process does, in its file: always written whole, so that nobody reads half of it


class NoWatch:
    """The one process of a run is watched by its person."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def beat(self, what: str, *, limited: bool = True, alone: bool = False) -> None:
        """Do nothing."""


class Watch(NoWatch):
    """While entered, ends this process when it has done one thing for too long, and names the one it waits for.

    A file of each process holds what it is doing; a thread touches it, so that a process that was stopped or is gone
    shows by a file that changes no more. A file that a killed run left counts from when this process first saw it, and
    only time that this machine is awake. It works whatever the collective that hangs, and whether it would raise or
    not. What may take long, like saving, has no limit, but for a neighbour that gives no sign of life: each looks at
    the next one.

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
        self._what, self._since, self._limited, self._alone = "starting", time.monotonic(), False, False
        self._file, self._began = -1, 0.0
        self._sign, self._heard = 0, 0.0  # the next process's: when its file changed, and when that was noticed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / FARE_WELL).unlink(missing_ok=True)
        self._file = os.open(self._path(self._rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.beat("starting", limited=False)
        self._began = os.stat(self._file).st_mtime
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._file)
        self._path(self._rank).unlink(missing_ok=True)

    def beat(self, what: str, *, limited: bool = True, alone: bool = False) -> None:
        """Say what this process is about to do.

        Args:
            what: in the words of a message, such as "computing step 12".
            limited: whether it may take no longer than the time-out.
            alone: whether it waits for no other process.
        """
        self._what, self._since, self._limited, self._alone = what, time.monotonic(), limited, alone
        text = f"{what[:WIDTH].ljust(WIDTH)}\n{os.getpid()} on {socket.gethostname()}\n"
        os.pwrite(self._file, text.encode(), 0)

    def suspects(self) -> list[str]:
        """The processes that have not been heard of, or else those that do something else than this one."""
        silent, elsewhere = [], []
        for rank in range(self._size):
            if rank == self._rank:
                continue
            try:
                what, _, who = self._path(rank).read_text(encoding="utf-8").partition("\n")
            except OSError:
                silent.append(f"process {rank} is gone")
                continue
            name, what, age = f"process {rank} (number {who.strip()})", what.strip(), self._age(rank)
            if age > max(2.0, self._timeout / 2):
                silent.append(f"{name} has not been heard of for {age:.0f} s (it was {what})")
            elif what != self._what:
                elsewhere.append(f"{name} is still {what}")
        return silent or elsewhere

    def _watch(self) -> None:
        every, last = min(1.0, self._timeout / 10), time.monotonic()
        while not self._over.wait(every):
            late, last = time.monotonic() - last - every, time.monotonic()
            if late > max(2.0, every):  # this process was halted, and maybe all of them: that is nobody's waiting
                self._since, self._heard = self._since + late, self._heard + late
            with suppress(OSError):  # a file system may fail for once
                os.utime(self._file)
            waited = time.monotonic() - self._since
            is_late = self._limited and waited > self._timeout
            if is_late or self._silence() > self._timeout:
                self._give_up(waited)

    def _silence(self) -> float:
        """Seconds since the next process's last sign of life was noticed; 0 where it has left."""
        try:
            sign = self._path((self._rank + 1) % self._size).stat().st_mtime_ns
        except OSError:
            return 0.0
        now = time.monotonic()
        if sign != self._sign:
            self._sign, self._heard = sign, now
        return now - self._heard

    def _age(self, rank: int) -> float:
        """Seconds since a process's sign of life, or since this one began, by the clock of the files."""
        try:
            return os.stat(self._file).st_mtime - max(self._began, self._path(rank).stat().st_mtime)
        except OSError:
            return 0.0

    def _give_up(self, waited: float) -> None:
        reasons = ", ".join(self.suspects()) or "all others are there, too: the exchange itself hangs"
        if self._alone and waited > self._timeout:
            reasons = "it waits for no other process there"
        try:
            with suppress(FileExistsError):  # the first one speaks for all, and whoever started them ends the others
                (self._folder / FARE_WELL).touch(exist_ok=False)
                print(
                    f"error: process {self._rank} of {self._size} has been {self._what} for {waited:.0f} s "
                    f"(parallel.timeout_seconds is {self._timeout:g}): {reasons}. Continue with `sortyard resume`",
                    file=sys.stderr,
                    flush=True,
                )
        finally:
            os._exit(1)  # the main thread may hang in a call that nothing interrupts

    def _path(self, rank: int) -> Path:
        return self._folder / f"process-{rank}"
