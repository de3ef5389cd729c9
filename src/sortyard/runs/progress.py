"""What a person sees while a run trains: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

Metrics = Mapping[str, Any]


class Progress:
    """Shows how far a run is; this one shows nothing."""

    def start(self, *, total: int, done: int) -> None:
        """A run of `total` steps begins, or goes on after `done` of them."""

    def update(self, metrics: Metrics) -> None:
        """A step is finished; metrics holds "step" and fields of a metrics line, each possibly null or absent."""

    def message(self, text: str) -> None:
        """Something happened that a person should read."""

    def stop(self) -> None:
        """The run is over, or broke off."""


class RichProgress(Progress):
    """A bar with what matters about the run beside it, for a terminal.

    Args:
        console: where to draw.
        label: name of the phase, such as "pretrain".
    """

    def __init__(self, console: Console, *, label: str):
        self._label = label
        columns: list[ProgressColumn | str] = [
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"), TimeRemainingColumn(),
        ]  # fmt: skip
        self._bar = RichBar(*columns, console=console)
        self._task: TaskID | None = None

    def start(self, *, total: int, done: int) -> None:
        """Draw the bar at the restored step."""
        self._task = self._bar.add_task(self._label, total=total, completed=done, summary="")
        self._bar.start()

    def update(self, metrics: Metrics) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=metrics["step"], summary=summary(metrics))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


class PlainProgress(Progress):
    """A line every few seconds, for logs and pipes.

    Args:
        console: where to print.
        label: name of the phase, such as "pretrain".
        every_seconds: least time between two lines; the last step always has one.
    """

    def __init__(self, console: Console, *, label: str, every_seconds: float = 10.0):
        self._console = console
        self._label = label
        self._every_seconds = every_seconds
        self._total = 0
        self._started_at = self._printed_at = 0.0
        self._done_at_start = 0

    def start(self, *, total: int, done: int) -> None:
        """Remember where the run stands."""
        self._total, self._done_at_start = total, done
        self._started_at = self._printed_at = time.monotonic()

    def update(self, metrics: Metrics) -> None:
        """Print a line if it is time."""
        now, step = time.monotonic(), metrics["step"]
        if step < self._total and now - self._printed_at < self._every_seconds:
            return
        self._printed_at = now
        left = (now - self._started_at) / max(1, step - self._done_at_start) * (self._total - step)
        self.message(f"{self._label}  {step}/{self._total}  {summary(metrics)}  {left:.0f} s left")

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_progress(console: Console, *, label: str) -> Progress:
    """A bar where the console is a terminal, lines elsewhere."""
    return RichProgress(console, label=label) if console.is_terminal else PlainProgress(console, label=label)


def summary(metrics: Metrics) -> str:
    """The fields that are there, in words: loss, tokens per second, memory, experts used, sparsity."""
    shown = {
        "loss": "loss {:.3f}",
        "tokens_per_second": "{:,.0f} tok/s",
        "memory_bytes": "{:,.0f} MB",
        "experts_used": "experts {:.0f} used",
        "sparsity": "sparsity {:.0%}",
    }
    values = {name: metrics.get(name) for name in shown}
    if values["memory_bytes"] is not None:
        values["memory_bytes"] /= 10**6
    return "  ".join(text.format(values[name]) for name, text in shown.items() if values[name] is not None)
