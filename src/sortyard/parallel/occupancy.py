"""How much of a schedule's time a process spends on its stages; the rest is the pipeline's bubble."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        self._busy: list[tuple[Any, Any]] = []
        self._whole: list[tuple[Any, Any]] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """A pass of a stage."""
        start = self._now()
        yield
        self._busy.append((start, self._now()))

    @contextmanager
    def scheduled(self) -> Iterator[None]:
        """A whole schedule."""
        start = self._now()
        yield
        self._whole.append((start, self._now()))

    def take(self) -> tuple[float, float]:
        """Seconds of work and in all, since the last call; waits for a GPU to finish."""
        if self._whole and self._device.type == "cuda":
            self._whole[-1][1].synchronize()
        busy, whole = (sum(self._seconds(*span) for span in spans) for spans in (self._busy, self._whole))
        self._busy, self._whole = [], []
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
        setattr(stage, name, occupancy.working()(getattr(stage, name)))
