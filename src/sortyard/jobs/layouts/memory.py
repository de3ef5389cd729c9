"""Peak memory of a GPU, part by part."""

import math
from dataclasses import asdict, dataclass

from sortyard.evaluation.activations import Cut, checkpoint_bytes, head_bytes, layer_bytes
from sortyard.jobs.layouts.pipeline import ZERO_BUBBLE, Chunk, in_flight
from sortyard.jobs.layouts.weights import FLOAT_BYTES, Weight, gathered, held_bytes
from sortyard.jobs.layouts.work import Work
from sortyard.parallel.options import ParallelOptions


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    Attributes:
        parameters: Its shards, in float32.
        gradients: The same.
        optimizer: AdamW's two moments, in float32.
        activations: What the backward passes of all micro-batches in flight need.
        logits: What the head and its loss need.
        buffers: Gathered weights, gradients before they are scattered, 16-bit copies, messages.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(asdict(self).values())


def rows_of_process(work: Work, layout: ParallelOptions) -> int:
    """Rows of a micro-batch for one data-parallel process; of the one with most, where they come out uneven."""
    return math.ceil(work.rows / layout.num_shares)


def cut_of(layout: ParallelOptions) -> Cut:
    """How a layout cuts activations."""
    return Cut(layout.tp, layout.tp if layout.sequence_parallel else 1, sends_copies=layout.ep > 1)


def memory_of_rank(
    work: Work, layout: ParallelOptions, *, rank: int, chunks: list[Chunk], weights: list[Weight]
) -> Memory:
    """Estimates the peak of a GPU.

    Args:
        work: What is to be done.
        layout: The layout.
        rank: Pipeline process, from 0.
        chunks: Its stages.
        weights: Its parameters.
    """
    held = held_bytes(weights, layout)
    tokens = rows_of_process(work, layout) * work.length
    has_head = any(chunk.has_head for chunk in chunks)
    kept, peak = head_bytes(work.config, half=work.half, cut=cut_of(layout)) if has_head else (0.0, 0.0)
    losses = work.micro_batches if layout.schedule == "gpipe" and layout.pp > 1 else 1
    return Memory(
        parameters=held.parameters,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=math.ceil(tokens * _activations(work, layout, rank=rank, chunks=chunks)),
        logits=math.ceil(tokens * work.target_share * (losses * kept + peak)),
        buffers=_gathered_bytes(work, layout, weights=weights) + _message_bytes(work, layout, tokens=tokens),
    )


def _activations(work: Work, layout: ParallelOptions, *, rank: int, chunks: list[Chunk]) -> float:
    """Bytes for each token of a row."""
    cut = cut_of(layout)
    line = checkpoint_bytes(work.config, cut=cut)
    full = [
        layer_bytes(work.config, layer=layer, keys=work.keys[layer], half=work.half, cut=cut)
        for chunk in chunks
        for layer in chunk.layers
    ]
    ends = line * len(chunks) + (line if any(chunk.has_embeddings for chunk in chunks) else 0)
    one_pass = (ends + (line * len(full) if work.recomputes else sum(full))) / len(chunks)
    passes = in_flight(layout.schedule, rank=rank, pp=layout.pp, micro_batches=work.micro_batches)
    if not work.recomputes:
        return passes * one_pass
    is_split = layout.pp > 1 and layout.schedule in ZERO_BUBBLE  # weights' gradients come later and need what was made
    again = layout.pp * sum(full) / len(chunks) if is_split else max(full)
    return passes * one_pass + again


def _gathered_bytes(work: Work, layout: ParallelOptions, *, weights: list[Weight]) -> int:
    """Float32 weights and gradients that FSDP2 has in one piece at a time, and autocast's 16-bit copies of all weights.

    Without a pipeline two layers are gathered, one in use and the next, and the gradient of one is about to be
    scattered; embeddings and head stay. With one, all weights of the process stay for the step, and their gradients add
    up before they are scattered. The backward pass needs the copies, so all of them stay.
    """
    total = 0
    for experts in (False, True):
        shards = layout.dp_shard * (1 if experts else layout.ep)
        whole = FLOAT_BYTES if shards > 1 else 0
        everything = gathered(weights, layout, experts=experts)
        total += everything * work.operand_bytes if work.half else 0
        if layout.pp > 1 or shards == 1:
            total += everything * 2 * whole
            continue
        layers = {weight.place for weight in weights if isinstance(weight.place, int)}
        sizes = [gathered([w for w in weights if w.place == place], layout, experts=experts) for place in layers]
        rest = gathered([w for w in weights if not isinstance(w.place, int)], layout, experts=experts)
        total += max(sizes) * 3 * whole + rest * 2 * whole
    return total


def _message_bytes(work: Work, layout: ParallelOptions, *, tokens: int) -> int:
    """What arrives from other processes: partial sums of tensor parallelism, a stage's input and gradient."""
    states = tokens * int(work.config.hidden_size)
    tensor = states * work.operand_bytes if layout.tp > 1 else 0
    return tensor + (2 * states * FLOAT_BYTES if layout.pp > 1 else 0)
