"""SIGTERM, Ctrl-C and a closed terminal during training: finish the step, save, then leave."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from sortyard.stop_requests import REPEAT_SECONDS, heard_signals, request_of


class StopSignals:
    """While entered, a first signal is only noted, and a later one acts at once, as if nothing had been installed.

    The same request may come twice within moments, by two ways, so what comes so soon is no second one. The end of a
    terminal (SIGHUP) counts as SIGTERM, unless nohup or the like has seen to it that nobody hears of it.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first one
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in heard_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def leave(self, received: int) -> NoReturn:
        """Raise what a signal asks for: KeyboardInterrupt, or SystemExit with status 143.

        Args:
            received: by this process, or by another of the same run.
        """
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received = request_of(number)
            self._received_at = now
        elif now - self._received_at > REPEAT_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
