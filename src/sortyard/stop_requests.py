"""Which signals ask a program to end, and what each asks for."""

import signal

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
