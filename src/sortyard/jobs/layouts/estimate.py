"""A layout's memory, messages and time, as estimated for the GPU that has most of each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sortyard.jobs.layouts.machines import Cluster
from sortyard.jobs.layouts.memory import Memory, memory_of_rank, rows_of_process
from sortyard.jobs.layouts.pipeline import Chunk, stages_of_ranks
from sortyard.jobs.layouts.traffic import KINDS, messages_of_rank
from sortyard.jobs.layouts.weights import Weight, weights_of
from sortyard.jobs.layouts.work import Work
from sortyard.parallel.options import ParallelOptions, bubble_share

USABLE = 0.9
ADAMW_PASSES = 7  # reads weight, gradient and two moments, writes three of them


@dataclass(frozen=True)
class Estimate:
    """What a layout needs and takes; bytes and seconds are those of the busiest GPU.

    Attributes:
        layout: The layout.
        memory: At its peak.
        fits: Whether that is at most `USABLE` of the card.
        sent: Bytes a step, by kind.
        link_seconds: Of a step, by kind, whether or not they hide behind arithmetic.
        bubble: Share of a step in which a pipeline process waits.
        compute_seconds: Arithmetic of a step.
        optimizer_seconds: AdamW's passes over the memory.
        step_seconds: All together.
        tokens_per_second: Of the whole run.
    """

    layout: ParallelOptions
    memory: Memory
    fits: bool
    sent: Mapping[str, float]
    link_seconds: Mapping[str, float]
    bubble: float
    compute_seconds: float
    optimizer_seconds: float
    step_seconds: float
    tokens_per_second: float

    def record(self) -> dict[str, Any]:
        """Returns the estimate as JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in ("layout", "memory")}
        memory = asdict(self.memory) | {"total": self.memory.total}
        return {"layout": self.layout.model_dump(), "memory_bytes": memory} | values


def estimate_layout(work: Work, layout: ParallelOptions, cluster: Cluster) -> Estimate:
    """Estimates a layout that is possible.

    FSDP2's messages and those between replicas hide behind arithmetic as far as that lasts; those of tensor and expert
    parallelism do not hide, and wait in the bubble too; sends between stages do not hide either.

    Args:
        work: What is to be done.
        layout: Every process counted, so that dp_shard is at least 1.
        cluster: What is to do it.
    """
    ranks = stages_of_ranks(layout, num_layers=work.num_layers)
    memory, sent, seconds = None, dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    compute = optimizer = 0.0
    for rank, chunks in enumerate(ranks):
        weights = weights_of(work.weights, chunks)
        found = memory_of_rank(work, layout, rank=rank, chunks=chunks, weights=weights)
        memory = found if memory is None or found.total > memory.total else memory
        mine, took = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
        for message in messages_of_rank(work, layout, cluster, rank=rank, chunks=chunks, weights=weights):
            mine[message.kind] += message.sent
            took[message.kind] += message.seconds
        sent = {kind: max(sent[kind], mine[kind]) for kind in KINDS}
        seconds = {kind: max(seconds[kind], took[kind]) for kind in KINDS}
        compute = max(compute, _compute_seconds(work, layout, cluster, chunks=chunks))
        optimizer = max(optimizer, _optimizer_seconds(weights, layout, cluster))
    assert memory is not None
    bubble = bubble_share(layout.schedule, pp=layout.pp, micro_batches=work.micro_batches, recomputes=work.recomputes)
    busy = compute + seconds["tensor"] + seconds["experts"]
    hidden = seconds["gather"] + seconds["scatter"] + seconds["replicas"]
    step = busy / (1 - bubble) + max(0.0, hidden - compute) + seconds["pipeline"] + seconds["tied"] + optimizer
    return Estimate(
        layout=layout,
        memory=memory,
        fits=memory.total <= USABLE * cluster.gpu.memory_bytes,
        sent=sent,
        link_seconds=seconds,
        bubble=bubble,
        compute_seconds=compute,
        optimizer_seconds=optimizer,
        step_seconds=step,
        tokens_per_second=work.tokens / step,
    )


def _compute_seconds(work: Work, layout: ParallelOptions, cluster: Cluster, *, chunks: list[Chunk]) -> float:
    """Forward, twice that backward, and forward again where activations are recomputed, which the head's are not."""
    layers = sum(len(chunk.layers) for chunk in chunks)
    heads = sum(chunk.has_head for chunk in chunks)
    flops = (4 if work.recomputes else 3) * layers * work.layer_flops + 3 * heads * work.target_share * work.head_flops
    tokens = rows_of_process(work, layout) * work.length * work.micro_batches
    peak = cluster.gpu.half_flops if work.half else cluster.gpu.float_flops
    return tokens * flops / layout.tp / (peak * cluster.mfu)


def _optimizer_seconds(weights: list[Weight], layout: ParallelOptions, cluster: Cluster) -> float:
    numbers = sum(weight.in_shard(layout) for weight in weights)
    return ADAMW_PASSES * 4 * numbers / cluster.gpu.memory_speed
