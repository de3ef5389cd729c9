"""Pipeline schedules as torch runs them: idle share, micro-batches in flight; imports no torch.

p processes, m micro-batches; a forward pass takes 1 and a backward pass 2, half of it for inputs, half for weights.
Activation checkpointing adds 1 to what inputs take. Tests play torch's own tables and compare.

Source: GPipe (arXiv:1811.06965), interleaved (arXiv:2104.04473), zero bubble and its V shape (arXiv:2401.10241).
"""

from dataclasses import dataclass

from sortyard.errors import InputError
from sortyard.parallel.options import ParallelOptions, Schedule, layer_span, stages_of

ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv_zero_bubble")


@dataclass(frozen=True)
class Chunk:
    """The layers of one stage; the first stage embeds, the last one has the head."""

    layers: range
    has_embeddings: bool
    has_head: bool


def stages_of_ranks(layout: ParallelOptions, *, num_layers: int) -> list[list[Chunk]]:
    """The stages of each pipeline process, layers split evenly and the first stages longer by one where that fails.

    Args:
        layout: The layout.
        num_layers: Layers of the model, at least as many as stages.
    """
    count = layout.num_stages
    chunks = [
        Chunk(range(*layer_span(num_layers, count, stage)), has_embeddings=stage == 0, has_head=stage == count - 1)
        for stage in range(count)
    ]
    return [[chunks[stage] for stage in stages_of(layout, rank=rank)] for rank in range(layout.pp)]


def check_schedule(schedule: Schedule, *, pp: int, micro_batches: int) -> None:
    """Refuses what torch cannot run, or fills up with idle slots.

    Raises:
        InputError: There are too few micro-batches, or they do not come in even rounds.
    """
    needed = {"gpipe": 1, "zbv_zero_bubble": 2 * pp - 1}.get(schedule, pp)
    if micro_batches < needed:
        raise InputError(f"accumulation_steps {micro_batches} is too few for {schedule} with pp {pp} (needs {needed})")
    rounds = max(1, micro_batches // pp)
    if schedule.startswith("interleaved") and micro_batches % rounds:
        raise InputError(f"accumulation_steps {micro_batches} does not fall into {rounds} even rounds for {schedule}")


def in_flight(schedule: Schedule, *, rank: int, pp: int, micro_batches: int) -> int:
    """How many stage passes a process holds the activations of, at most.

    Args:
        schedule: The schedule.
        rank: Pipeline process, from 0.
        pp: Pipeline processes.
        micro_batches: Of a step.
    """
    if pp == 1:
        return 1
    if schedule == "gpipe":
        return micro_batches
    if schedule == "1f1b":
        return min(micro_batches, pp - rank)
    a_round = micro_batches // max(1, micro_batches // pp)
    held = {
        "interleaved_1f1b": a_round + 2 * (pp - 1 - rank) + 1,
        "interleaved_zero_bubble": a_round + pp,
        "zbv_zero_bubble": 2 * pp,
    }[schedule]
    return min(2 * micro_batches, held)
