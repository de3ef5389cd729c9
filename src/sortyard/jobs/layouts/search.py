"""All layouts of a number of GPUs: which are possible, and which come first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from sortyard.errors import InputError
from sortyard.jobs.layouts.estimate import Estimate, estimate_layout
from sortyard.jobs.layouts.machines import Cluster
from sortyard.jobs.layouts.pipeline import check_schedule
from sortyard.jobs.layouts.work import Work
from sortyard.parallel.options import ParallelOptions, Schedule, check_combination


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        layouts: Those that are possible: the ones that fit first, the fastest of them first; of those that do not fit,
            the smallest first.
        refused: How many are not possible, by reason.
    """

    layouts: list[Estimate]
    refused: dict[str, int]


def find_layouts(work: Work, cluster: Cluster) -> Found:
    """Estimates every layout that uses all GPUs; sequence parallelism is tried where memory is too small without it."""
    found: list[Estimate] = []
    refused: Counter[str] = Counter()
    for layout in _candidates(cluster.gpus):
        try:
            check_layout(work, layout, cluster)
        except InputError as error:
            refused[str(error)] += 1
            continue
        estimate = estimate_layout(work, layout, cluster)
        if not estimate.fits and layout.tp > 1:
            estimate = estimate_layout(work, layout.model_copy(update={"sequence_parallel": True}), cluster)
        found.append(estimate)
    return Found(sorted(found, key=_order), dict(refused.most_common()))


def first_of_each(layouts: list[Estimate]) -> list[Estimate]:
    """The first with each pp, ep and tp, whatever its schedule and its split into replicas and shards."""
    first: dict[tuple[int, int, int], Estimate] = {}
    for estimate in layouts:
        layout = estimate.layout
        first.setdefault((layout.pp, layout.ep, layout.tp), estimate)
    return list(first.values())


def check_layout(work: Work, layout: ParallelOptions, cluster: Cluster) -> None:
    """Refuses a layout that cannot be.

    Raises:
        InputError: Something does not divide, or there is too little of it.
    """
    from sortyard.model.parallel_plan import check_divides

    config = work.config
    check_divides(config, layout.tp)
    if layout.tp > cluster.per_node:
        raise InputError(f"tp {layout.tp} would leave the node of {cluster.per_node} GPUs")
    has_experts = any(config.has_experts(layer) for layer in range(work.num_layers))
    if layout.ep > 1 and not has_experts:
        raise InputError(f"ep is {layout.ep}, but the model has no experts")
    if has_experts and config.num_experts % layout.ep:
        raise InputError(f"ep {layout.ep} does not divide num_experts {config.num_experts}")
    if layout.num_shares > work.rows:
        raise InputError(f"{layout.num_shares} data-parallel processes for micro_batch_size {work.rows}")
    if layout.num_stages > work.num_layers:
        raise InputError(f"{layout.num_stages} pipeline stages for num_hidden_layers {work.num_layers}")
    check_combination(layout, context=config.context, router=config.router, checkpointing=work.checkpointing)
    check_schedule(layout.schedule, pp=layout.pp, micro_batches=work.micro_batches)


def _order(estimate: Estimate) -> tuple[bool, float, int, int, int]:
    layout = estimate.layout
    first = estimate.step_seconds if estimate.fits else float(estimate.memory.total)
    return (not estimate.fits, first, layout.pp, layout.tp, layout.ep)


def _candidates(gpus: int) -> Iterator[ParallelOptions]:
    schedules: tuple[Schedule, ...] = get_args(Schedule)
    for pp in _divisors(gpus):
        for tp in _divisors(gpus // pp):
            for ep in _divisors(gpus // pp // tp):
                data = gpus // pp // tp // ep
                for shard in _divisors(data):
                    for schedule in schedules if pp > 1 else ("1f1b",):
                        yield ParallelOptions(
                            dp_replicate=data // shard, dp_shard=shard, ep=ep, tp=tp, pp=pp, schedule=schedule
                        )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
