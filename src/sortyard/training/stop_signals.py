"""SIGTERM, Ctrl-C and a closed terminal during training: finish the step, save, then leave."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
REPEAT_SECONDS = 2.0  # torchrun passes on the signal that a scheduler may have sent to its processes, too


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
            heard = (
                n for n in SIGNALS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) != signal.SIG_IGN
            )
            self._previous = {number: signal.signal(number, self._note) for number in heard}
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
            self.received = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            self._received_at = now
        elif now - self._received_at > REPEAT_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
