"""Several commands of sortyard at a time, each a process: what each took, and an end that lets them save."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from sortyard.stop_requests import StopSignals

T = TypeVar("T")
POLL_SECONDS = 0.1
ONE_CORE = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Its exit status; negative = the signal that ended it.
        seconds: By the clock.
        processor_seconds: Of the process and its children; None where the system does not tell.
        was_stopped: Whether it was asked to save and end.
    """

    status: int
    seconds: float
    processor_seconds: float | None
    was_stopped: bool


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True)
class Crew(Generic[T]):
    """What is known of the work.

    Attributes:
        words: The verb and its arguments for an item.
        log: Where an item's process writes what it says; the folder exists.
        ended: Told of every process that ended; what it raises stops the others.
        began: Told of every item whose process begins.
        is_ready: Whether an item may begin now; asked again after every process that ended.
        environment: Variables that its processes have besides ours.
    """

    words: Callable[[T], Sequence[str]]
    log: Callable[[T], Path]
    ended: Callable[[T, Ended], None]
    began: Callable[[T], None]
    is_ready: Callable[[T], bool] = _always
    environment: Mapping[str, str] = field(default_factory=dict)

    def work(self, items: Sequence[T], *, at_once: int) -> None:
        """Do everything, in order, `at_once` at a time.

        Args:
            items: Those that are to be done; an item that never gets ready is left.
            at_once: Processes at the same time.

        Raises:
            KeyboardInterrupt: Ctrl-C; the processes were asked to save, and have ended.
            SystemExit: SIGTERM, likewise.
        """
        with StopSignals() as signals:
            _Shift(self, items, at_once=at_once).work(signals)
            if signals.received:
                signals.leave(signals.received)


class _Shift(Generic[T]):
    """The processes of one call."""

    def __init__(self, crew: Crew[T], items: Sequence[T], *, at_once: int) -> None:
        self._crew, self._waiting, self._at_once = crew, list(items), at_once
        self._running: list[tuple[T, subprocess.Popen[bytes], float]] = []

    def work(self, signals: StopSignals) -> None:
        try:
            while not signals.received and (self._running or self._next() is not None):
                while len(self._running) < self._at_once and (item := self._next()) is not None:
                    self._waiting.remove(item)
                    self._start(item)
                time.sleep(POLL_SECONDS)
                self._gather()
            if signals.received:
                self._stop(signals.received)
        except BaseException:
            self._stop(signal.SIGTERM)
            raise

    def _next(self) -> T | None:
        return next((item for item in self._waiting if self._crew.is_ready(item)), None)

    def _start(self, item: T) -> None:
        self._crew.began(item)
        with self._crew.log(item).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sortyard", *self._crew.words(item)],
                env=os.environ | self._crew.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches it once, by this process
            )
        self._running.append((item, process, time.perf_counter()))

    def _gather(self) -> None:
        for entry in list(self._running):
            item, process, began = entry
            found = _wait(process, block=False)
            if found is not None:
                self._running.remove(entry)
                status, used = found
                self._crew.ended(item, Ended(status, time.perf_counter() - began, used, was_stopped=False))

    def _stop(self, number: int) -> None:
        """Let the processes save what they have, and wait for them."""
        for _, process, _ in self._running:
            process.send_signal(number)
        while self._running:
            item, process, began = self._running.pop()
            status, used = _wait(process, block=True) or (1, None)
            self._crew.ended(item, Ended(status, time.perf_counter() - began, used, was_stopped=True))


def ending(status: int) -> str:
    """Say how a process ended that was not its input's fault."""
    return f"exit status {status}" if status >= 0 else f"ended by signal {-status} (9: maybe for want of memory)"


def last_words(log: Path, *, lines: int = 1) -> str:
    """The last lines that a process wrote, without its "error: "."""
    written = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    found = [line.strip() for line in written if line.strip()][-lines:]
    return " ".join(found).removeprefix("error: ") or "it said nothing"


def _wait(process: "subprocess.Popen[bytes]", *, block: bool) -> tuple[int, float | None] | None:
    """Exit status and processor seconds of a process; None while it is running."""
    if process.returncode is not None:  # sending it a signal found that it had ended
        return process.returncode, None
    if not hasattr(os, "wait4"):  # Windows does not tell what a process took
        status = process.wait() if block else process.poll()
        return None if status is None else (status, None)
    found, status, usage = os.wait4(process.pid, 0 if block else os.WNOHANG)
    if not found:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for a process that is gone
    return process.returncode, usage.ru_utime + usage.ru_stime
