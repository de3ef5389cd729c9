"""How much of a schedule's time a process spends on its stages; the rest is the pipeline's bubble."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.distributed.pipelining import PipelineStage


class Occupancy:
    """Times of the forward and backward passes of stages, and of the schedules around them.

    On a GPU these are times of its stream, taken without making it wait. What a stage exchanges within its pass counts
    as work; waiting for the stage before or after it does not.

    Args:
        device: where the stages compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = {"pass": [], "schedule": []}

    @contextmanager
    def timing(self, what: Literal["pass", "schedule"]) -> Iterator[None]:
        """A pass of a stage, or a whole schedule."""
        start = self._now()
        yield
        self._spans[what].append((start, self._now()))

    def take(self) -> tuple[float, float]:
        """Seconds of passes and of schedules, since the last call; waits for a GPU to finish."""
        if self._spans["schedule"] and self._device.type == "cuda":
            self._spans["schedule"][-1][1].synchronize()
        busy, whole = (sum(self._seconds(*span) for span in spans) for spans in self._spans.values())
        self._spans = {"pass": [], "schedule": []}
        return busy, whole

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000 if self._device.type == "cuda" else end - start


def time_passes(stage: PipelineStage, occupancy: Occupancy) -> None:
    """Let the passes of a pipeline's stage add to what is known of its process."""
    for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
        setattr(stage, name, occupancy.timing("pass")(getattr(stage, name)))
