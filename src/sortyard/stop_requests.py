"""Signals that ask a program to end: which they are, what each asks for, and noting them."""

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn, Self

REPEAT_SECONDS = 2.0  # launchers pass on what a scheduler may have sent to their processes, too


def heard_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM and the end of a terminal, unless nohup or the like has seen to it that nobody hears of that."""
    heard = (signal.SIGINT, signal.SIGTERM)
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return heard
    return (*heard, signal.SIGHUP)


def request_of(number: int) -> signal.Signals:
    """What a heard signal asks for: SIGINT of Ctrl-C, SIGTERM of all others."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


class Requests:
    """While entered, requests to end are only noted, and what comes again within moments is no second one.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.noted: list[signal.Signals] = []
        self._last = float("-inf")
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> int:
        """The first request; 0 for none."""
        return self.noted[0] if self.noted else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in heard_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last > REPEAT_SECONDS:
            self.noted.append(request_of(number))
        self._last = now


class StopSignals(Requests):
    """While entered, a first request is only noted, and one that comes later acts as if nothing had been installed."""

    def leave(self, received: int) -> NoReturn:
        """Raise what a signal asks for: KeyboardInterrupt, or SystemExit with status 143.

        Args:
            received: by this process, or by another of the same run.
        """
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.noted:
            super()._note(number, frame)
        elif time.monotonic() - self._last > REPEAT_SECONDS:
            self.__exit__()
            signal.raise_signal(number)
