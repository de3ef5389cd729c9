"""Keeps a run's records: metrics, routing, events, trackers and the progress display, in step with its state."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sortyard.runs.folder import RunFolder
from sortyard.runs.progress import Progress
from sortyard.runs.trackers import Writer
from sortyard.training.efficiency import Efficiency
from sortyard.training.metrics import Window, load_shares
from sortyard.training.state import TrainState


class Records:
    """Where a run writes what happens; this one writes nothing, as of several processes only the first one writes."""

    def step(self, state: TrainState, *, lr: float, memory: int, is_due: bool) -> None:  # noqa: ARG002
        """A step is finished; if a line is due, a new window begins."""
        if is_due:
            state.window = Window()

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        """The model was measured."""

    def event(self, event: str, *, step: int, **details: Any) -> None:
        """Something happened."""

    def warn(self, message: str, *, step: int) -> None:
        """Something happened that a person should read."""

    def say(self, message: str) -> None:
        """Tell the person, and write nothing."""

    def close(self) -> None:
        """The run is over, or broke off."""


class Recorder(Records):
    """Writes what happens to the run's folder and shows it.

    Args:
        run: the run's folder, already cut back to the state's step.
        progress: the display.
        efficiency: what speed is measured by.
        steps_per_epoch: optimizer steps in one pass over the data.
        writers: what gets the metrics besides.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        progress: Progress,
        efficiency: Efficiency,
        steps_per_epoch: int,
        writers: Sequence[Writer] = (),
    ):
        self.run = run
        self.progress = progress
        self._efficiency = efficiency
        self._steps_per_epoch = steps_per_epoch
        self._writers = writers

    def step(self, state: TrainState, *, lr: float, memory: int, is_due: bool) -> None:
        """Show a finished step; if a line is due, write the window's averages and begin a new window."""
        averages = state.window.averages()
        self.progress.update({"step": state.step, "memory_bytes": memory, **averages})
        if not is_due:
            return
        values = {
            "epoch": state.step / self._steps_per_epoch,
            **averages,
            **self._efficiency.of(averages),
            "lr": lr,
            "tokens": state.tokens,
            "memory_bytes": memory,
            "seconds": state.seconds,
        }
        self._write("train", state.step, values)
        loads = state.window.loads()
        if loads is not None:
            self.run.append_routing(state.step, load_shares(loads).astype("float32"))
        super().step(state, lr=lr, memory=memory, is_due=is_due)

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write an evaluation's metrics."""
        self._write("eval", step, metrics)
        self.event("evaluation", step=step)

    def event(self, event: str, *, step: int, **details: Any) -> None:
        """Write an event."""
        self.run.append_event(event, step=step, **details)

    def warn(self, message: str, *, step: int) -> None:
        """Write and show a warning."""
        self.event("warning", step=step, message=message)
        self.progress.message(f"warning: {message}")

    def say(self, message: str) -> None:
        """Show a message."""
        self.progress.message(message)

    def close(self) -> None:
        """Finish what gets the metrics, and the display."""
        self.progress.stop()
        for writer in self._writers:
            with suppress(OSError):  # of a full disk, which the next checkpoint tells of
                writer.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self.run.append_metric(kind, step, values)
        there = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
        for writer in self._writers:
            writer.write(step, there)
