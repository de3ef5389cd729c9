"""Bytes that a GPU sends in a step, by kind, and how long its links take.

n processes that gather or scatter S bytes send S (n - 1) / n each, those that reduce S send twice that, and of S bytes
to be exchanged (n - 1) / n go to others. Ranks are counted with tp fastest, then ep, dp_shard, dp_replicate, pp.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sortyard.evaluation.activations import FLOAT_BYTES
from sortyard.jobs.layouts.machines import Cluster
from sortyard.jobs.layouts.memory import rows_of_process
from sortyard.jobs.layouts.pipeline import Chunk
from sortyard.jobs.layouts.weights import Weight, gathered, held_bytes
from sortyard.jobs.layouts.work import Work
from sortyard.parallel.options import ParallelOptions

KINDS = ("gather", "scatter", "replicas", "tensor", "experts", "pipeline", "tied")
Kind = Literal["gather", "scatter", "replicas", "tensor", "experts", "pipeline", "tied"]
SENT = {"gather": 1, "scatter": 1, "reduce": 2, "exchange": 1}


@dataclass(frozen=True)
class Message:
    """One kind of message of a step.

    Attributes:
        kind: gather and scatter are FSDP2's, replicas the reduction over copies of the model, tensor the sums of
            tensor parallelism, experts the exchange of token copies, pipeline what passes between stages, tied the
            gradient of an embedding that first and last stage share.
        sent: Bytes that a GPU sends.
        seconds: At the links' speed.
    """

    kind: Kind
    sent: float
    seconds: float


def messages_of_rank(
    work: Work, layout: ParallelOptions, cluster: Cluster, *, rank: int, chunks: list[Chunk], weights: list[Weight]
) -> list[Message]:
    """Estimates what a GPU sends in a step.

    Args:
        work: What is to be done.
        layout: The layout.
        cluster: Whose links.
        rank: Pipeline process, from 0.
        chunks: Its stages.
        weights: Its parameters.
    """
    states = rows_of_process(work, layout) * work.length * int(work.config.hidden_size)
    ring = _Ring(cluster)
    return [
        *_sharding(work, layout, ring=ring, weights=weights),
        _tensor(work, layout, ring=ring, states=states, chunks=chunks),
        _experts(work, layout, cluster, states=states, chunks=chunks),
        _pipeline(work, layout, cluster, states=states, rank=rank),
        _tied(work, layout, ring=ring, rank=rank),
    ]


@dataclass(frozen=True)
class _Ring:
    cluster: Cluster

    def message(self, kind: Kind, what: str, whole: float, *, size: int, stride: int) -> Message:
        sent = SENT[what] * whole * (size - 1) / size
        return Message(kind, sent, sent / self.cluster.speed(size=size, stride=stride, way="ring"))


def _sharding(work: Work, layout: ParallelOptions, *, ring: _Ring, weights: list[Weight]) -> Iterable[Message]:
    """Without a pipeline, weights are gathered twice and gradients scattered once a micro-batch; with one, once a step.

    The shards' gradients add up over micro-batches and are reduced over replicas once a step.
    """
    in_pipeline = layout.pp > 1
    gathers, scatters = (1, 1) if in_pipeline else (2 * work.micro_batches, work.micro_batches)
    for experts in (False, True):
        size = layout.dp_shard * (1 if experts else layout.ep)
        stride = layout.tp * (layout.ep if experts else 1)
        numbers = gathered(weights, layout, experts=experts)
        yield ring.message("gather", "gather", gathers * numbers * FLOAT_BYTES, size=size, stride=stride)
        yield ring.message("scatter", "scatter", scatters * numbers * FLOAT_BYTES, size=size, stride=stride)
    copies = {"size": layout.dp_replicate, "stride": layout.tp * layout.ep * layout.dp_shard}
    yield ring.message("replicas", "reduce", held_bytes(weights, layout).gradients, **copies)


def _tensor(work: Work, layout: ParallelOptions, *, ring: _Ring, states: int, chunks: list[Chunk]) -> Message:
    """Two sums a layer in each pass (three with a shared expert), the recomputing one included, and the ends'.

    Sequence parallelism scatters and gathers instead, which sends as much.
    """
    passes = 3 if work.recomputes else 2
    sums = 0.0
    for chunk in chunks:
        shared = sum(work.config.shared_expert and work.config.has_experts(layer) for layer in chunk.layers)
        sums += passes * (2 * len(chunk.layers) + shared)
        sums += chunk.has_embeddings + chunk.has_head * work.target_share
    whole = work.micro_batches * sums * states * work.operand_bytes
    return ring.message("tensor", "reduce", whole, size=layout.tp, stride=1)


def _experts(work: Work, layout: ParallelOptions, cluster: Cluster, *, states: int, chunks: list[Chunk]) -> Message:
    """Copies of tokens go to their experts and come back in each pass, the recomputing one included."""
    passes = 3 if work.recomputes else 2
    layers = sum(work.config.has_experts(layer) for chunk in chunks for layer in chunk.layers)
    copies = states * int(work.config.num_experts_per_tok) * work.operand_bytes
    sent = work.micro_batches * layers * passes * 2 * copies * (layout.ep - 1) / layout.ep
    speed = cluster.speed(size=layout.ep, stride=layout.tp, way="each")
    if layout.ep > 1 and speed < cluster.gpu.node_speed * cluster.link_share:  # those for its own node do not wait
        inside = max(1, cluster.per_node // layout.tp)
        return Message("experts", sent, sent * (layout.ep - inside) / (layout.ep - 1) / speed)
    return Message("experts", sent, sent / speed)


def _pipeline(work: Work, layout: ParallelOptions, cluster: Cluster, *, states: int, rank: int) -> Message:
    """Each stage but the last sends states, each but the first their gradients, in float32 as residual lines are."""
    count = layout.num_stages
    if layout.pp == count:
        stages = [rank]
    else:
        stages = [rank, count - 1 - rank if layout.schedule == "zbv_zero_bubble" else rank + layout.pp]
    sends = sum((stage < count - 1) + (stage > 0) for stage in stages)
    if layout.schedule == "zbv_zero_bubble" and rank == layout.pp - 1:
        sends -= 2  # the V turns round in the last process
    sent = float(work.micro_batches * sends * states * FLOAT_BYTES)
    if layout.sequence_parallel:
        sent /= layout.tp
    stride = layout.num_processes() // layout.pp
    return Message("pipeline", sent, sent / cluster.speed(size=layout.pp, stride=stride, way="each"))


def _tied(work: Work, layout: ParallelOptions, *, ring: _Ring, rank: int) -> Message:
    names: dict[int, list[Weight]] = {}
    for weight in work.weights:
        names.setdefault(weight.key, []).append(weight)
    shared = [found[0] for found in names.values() if len({weight.place for weight in found}) > 1]
    is_apart = layout.pp > 1 and layout.schedule != "zbv_zero_bubble" and rank in (0, layout.pp - 1)
    size, stride = (2, (layout.num_processes() // layout.pp) * (layout.pp - 1)) if is_apart else (1, 1)
    return ring.message("tied", "reduce", held_bytes(shared, layout).gradients, size=size, stride=stride)
