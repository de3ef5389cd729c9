"""Which numbers of a model each process holds, counted off the built model and cut as the layout cuts it.

Tensor parallelism cuts by the model's own plan, expert parallelism cuts the stacked experts by number, and FSDP2
cuts what is left: dense weights over dp_shard x ep processes, experts over dp_shard. It cuts rows, or the next dim
where there are fewer experts than processes and that dim comes out even. All sizes are those of the process with most.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sortyard.jobs.layouts.pipeline import Chunk
from sortyard.parallel.options import ParallelOptions

Place = int | Literal["embeddings", "head"]
FLOAT_BYTES = 4
STEP_BYTES = 4  # AdamW counts the steps of each tensor

_ROWS = {"colwise", "packed_colwise", "embedding_rowwise", "colwise_gather_output", "sortyard_packed_bias"}
_COLUMNS = {"rowwise", "packed_rowwise"}


@dataclass(frozen=True)
class Weight:
    """One parameter of the model.

    Attributes:
        key: The same for tied parameters.
        place: Layer number, or what else it belongs to.
        shape: Uncut.
        cut_dim: Dim that tensor parallelism cuts; None where it repeats the parameter.
        is_expert: Whether it stacks experts.
    """

    key: int
    place: Place
    shape: tuple[int, ...]
    cut_dim: int | None
    is_expert: bool

    def on_process(self, layout: ParallelOptions) -> tuple[int, ...]:
        """Shape once tensor and expert parallelism have cut it."""
        shape = list(self.shape)
        if self.cut_dim is not None:
            shape[self.cut_dim] = math.ceil(shape[self.cut_dim] / layout.tp)
        if self.is_expert:
            shape[0] = math.ceil(shape[0] / layout.ep)
        return tuple(shape)

    def shards(self, layout: ParallelOptions) -> int:
        """Processes over which FSDP2 cuts it."""
        return layout.dp_shard * (1 if self.is_expert else layout.ep)

    def in_shard(self, layout: ParallelOptions) -> int:
        """Numbers in the largest shard."""
        shape, shards = self.on_process(layout), self.shards(layout)
        is_sideways = self.is_expert and shape[0] < shards and shape[1] % shards == 0
        dim = shape[1] if is_sideways else shape[0]
        return math.prod(shape) // dim * math.ceil(dim / shards)


@dataclass(frozen=True)
class Held:
    """Bytes of a process between two steps."""

    parameters: int
    gradients: int
    optimizer: int


def read_weights(model: Any) -> list[Weight]:
    """Lists a model's parameters; tied ones as often as they have names.

    Args:
        model: A sortyard head, real or on the meta device.
    """
    from sortyard.evaluation.cost import expert_layers

    experts = {id(weight) for layer in expert_layers(model) for weight in layer.parameters(recurse=False)}
    plan: dict[str, str] = model.tp_plan
    return [
        Weight(
            key=id(parameter),
            place=_place(name),
            shape=tuple(parameter.shape),
            cut_dim=_cut_dim(name, ndim=parameter.ndim, plan=plan),
            is_expert=id(parameter) in experts,
        )
        for name, parameter in model.named_parameters(remove_duplicate=False)
    ]


def weights_of(weights: Iterable[Weight], chunks: Iterable[Chunk]) -> list[Weight]:
    """Those that a process with these stages holds, each once."""
    places: set[Place] = set()
    for chunk in chunks:
        places |= set(chunk.layers)
        places |= {"embeddings"} if chunk.has_embeddings else set()
        places |= {"head"} if chunk.has_head else set()
    return list({weight.key: weight for weight in weights if weight.place in places}.values())


def held_bytes(weights: Iterable[Weight], layout: ParallelOptions) -> Held:
    """Bytes of parameters, gradients and AdamW's state, all in float32.

    Args:
        weights: Those of the process.
        layout: The layout.
    """
    sizes = [weight.in_shard(layout) for weight in weights]
    whole = FLOAT_BYTES * sum(sizes)
    return Held(parameters=whole, gradients=whole, optimizer=2 * whole + STEP_BYTES * len(sizes))


def gathered(weights: Iterable[Weight], layout: ParallelOptions, *, experts: bool) -> int:
    """Numbers that FSDP2 gathers for a process: those of its dense weights, or of its experts.

    Args:
        weights: Those of the process.
        layout: The layout.
        experts: Which of the two.
    """
    return sum(math.prod(weight.on_process(layout)) for weight in weights if weight.is_expert == experts)


def _place(name: str) -> Place:
    layer = re.search(r"\.layers\.(\d+)\.", name)
    if layer is not None:
        return int(layer[1])
    return "embeddings" if name.startswith("model.embeddings.") else "head"


def _cut_dim(name: str, *, ndim: int, plan: dict[str, str]) -> int | None:
    """The dim that a rule of the plan cuts, counted from the back because experts are stacked in front."""
    pattern = re.sub(r"\.\d+\.", ".*.", name)
    module, _, kind = pattern.rpartition(".")
    rule = plan.get(pattern, plan.get(module, ""))
    if rule in _ROWS:
        return ndim - (1 if kind == "bias" else 2)
    return ndim - 1 if rule in _COLUMNS and kind != "bias" else None
