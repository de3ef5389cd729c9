"""How much of what the processors could do a run does."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sortyard.gpu_peaks import peaks_of
from sortyard.parallel.options import ParallelOptions, bubble_share
from sortyard.training.options import LoopOptions

_SIDE, _TRIES = 512, 5


@dataclass(frozen=True)
class TokenFlops:
    """Arithmetic of training on one token, forward and backward, without what is computed again.

    Args:
        executed: of the model as it is: chosen experts, keys that attention reads, the choice of buckets.
        dense: of its dense equivalent: the same but for attention, which reads every key.
    """

    executed: float
    dense: float


@dataclass(frozen=True)
class Efficiency:
    """What a run's speed is measured by.

    Args:
        flops: of a token; None where the model is not ours to count.
        peak: FLOP/s of one process's device; None where it is not known.
        num_processes: of the run.
        ideal_bubble_share: of the pipeline's schedule; None without a pipeline.
    """

    flops: TokenFlops | None = None
    peak: float | None = None
    num_processes: int = 1
    ideal_bubble_share: float | None = None

    def of(self, averages: Mapping[str, Any]) -> dict[str, float | None]:
        """The part of a metrics line that follows from a window's averages."""
        speed = averages["tokens_per_second"]
        peak = None if self.peak is None else self.peak * self.num_processes
        counts = (None, None) if self.flops is None else (self.flops.executed, self.flops.dense)
        executed, dense = (None if speed is None or count is None else speed * count for count in counts)
        return {
            "tokens_per_second_per_process": None if speed is None else speed / self.num_processes,
            "flops_per_second": executed,
            "mfu": None if executed is None or peak is None else executed / peak,
            "mfu_dense": None if dense is None or peak is None else dense / peak,
            "bubble_share_ideal": self.ideal_bubble_share,
        }


def peak_flops(device: torch.device, *, dtype: torch.dtype) -> float | None:
    """FLOP/s that a device could do in matrix products at best.

    Of a GPU what its data sheet says, by its name. A CPU's is measured, once in a process: the best of a few products
    of two matrices with torch's threads, about what a fast program gets while nothing else runs.

    Args:
        device: where a run computes.
        dtype: number format of its matrix products.

    Returns:
        FLOP/s; None for a GPU that is not in the table.
    """
    if device.type != "cuda":
        return _measured(dtype)
    name = torch.cuda.get_device_name(device)
    half, tf32, full = peaks_of(name) or (None, None, None)
    if dtype == torch.float32:
        half = full if torch.get_float32_matmul_precision() == "highest" else tf32
    return None if half is None else half * 1e12


@cache
def _measured(dtype: torch.dtype) -> float:
    left = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype)
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - started)
    return 2.0 * _SIDE**3 / min(seconds)


def ideal_bubble_share(options: ParallelOptions, loop: LoopOptions) -> float | None:
    """Share of a step in which a pipeline's process would wait, were stages equally slow; None without a pipeline."""
    if options.pp == 1:
        return None
    recomputes = loop.activation_checkpointing != "none"
    return bubble_share(options.schedule, pp=options.pp, micro_batches=loop.accumulation_steps, recomputes=recomputes)
