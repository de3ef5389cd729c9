"""From a whole model to this process's part of it; the order is `parallelize`."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sortyard.errors import InputError
from sortyard.parallel.data import set_reduction, shard_stage
from sortyard.parallel.experts import balance_over, cut_experts
from sortyard.parallel.mesh import Layout
from sortyard.parallel.occupancy import Occupancy
from sortyard.parallel.options import ActivationCheckpointing, ParallelOptions, check_combination, stages_of
from sortyard.parallel.placement import Placement, even_span
from sortyard.parallel.schedule import Pipeline, check_schedule
from sortyard.parallel.stage import Batch, Shares, Stage, StageReport, prune
from sortyard.parallel.tensor import cut_by_plan, share_layers
from sortyard.parallel.traffic import Traffic

TIED = "model.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Held:
    """A parameter or buffer, or what of it this process holds.

    Args:
        name: in the whole model.
        tensor: as the model has it, possibly a DTensor.
        placement: what tensor and expert parallelism left of it.
        first_row: rows of that which other data-parallel processes hold before this one's.
        is_owned: whether this process answers for it, where several hold the same.
    """

    name: str
    tensor: Tensor
    placement: Placement
    first_row: int
    is_owned: bool


class SplitModel:
    """This process's part of a model that several train together.

    Args:
        stages: the pipeline's stages held here.
        layout: the processes.
        placements: what is held of each of the stages' tensors, in the stages' order.
        added_up: names of parameters whose gradients are parts within a tensor-parallel group.
        counts_traffic: whether the first step counts what it exchanges; compilers stay away from where that is done.

    Attributes:
        traffic: bytes by kind that this process exchanged in its first step; empty before it, or where not counted.
        occupancy: how long its stages and the pipeline's schedule took.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        layout: Layout,
        placements: Sequence[dict[str, Placement]],
        added_up: Sequence[str],
        counts_traffic: bool = True,
    ) -> None:
        self.stages = nn.ModuleList(stages)
        self.layout = layout
        self._placements = placements
        self._added_up = frozenset(added_up)
        self._counts_traffic = counts_traffic
        self._pipelines: dict[tuple[int, ...], Pipeline] = {}
        self.traffic: dict[str, int] = {}
        self.occupancy = Occupancy(layout.device)

    def backward(self, batches: Sequence[Batch], shares: Shares) -> list[StageReport]:
        """Run a step's micro-batches, this process's rows of them, and leave the gradients of the whole step.

        Args:
            batches: tensors on the device; the same number on all processes, and in a pipeline of one shape.
            shares: what they count for.

        Returns:
            What the stages held here saw.
        """
        for stage in self._stages():
            stage.load(batches, shares)
        with Traffic() if self._counts_traffic and not self.traffic else nullcontext() as traffic:
            self._backward(batches)
        self.traffic = traffic.bytes if traffic else self.traffic
        return [report for stage in self._stages() for report in stage.reports.values()]

    def _backward(self, batches: Sequence[Batch]) -> None:
        if self.layout.options.pp > 1:
            self._pipeline(batches).run()
        else:
            for number in range(len(batches)):
                set_reduction(self.stages[0], is_last=number == len(batches) - 1, layout=self.layout)
                self.stages[0](micro=torch.tensor(number)).backward()
        self.add_up_gradients()

    def held(self, *, buffers: bool = True) -> Iterator[Held]:
        """What this process holds, stage by stage; tied tensors once for each stage."""
        for stage, placements in zip(self._stages(), self._placements, strict=True):
            model: Any = stage.model
            for name, parameter in model.named_parameters():
                yield self._held_parameter(name, parameter, placements[name])
            if not buffers:
                continue
            persistent = model.state_dict(keep_vars=True).keys()
            for name, buffer in model.named_buffers():
                if name in persistent:
                    is_owned = self.layout.data.rank() == 0 and self.layout.rank("tp") == 0
                    yield Held(name, buffer, Placement.of(buffer), 0, is_owned)

    @property
    def config(self) -> Any:
        """The whole model's configuration."""
        return self._stages()[0].model.config

    @property
    def num_expert_layers(self) -> int:
        """Expert layers of the whole model."""
        return int(self._stages()[0].model.base_model.encoder.num_expert_layers)

    def update_expert_bias(self, loads: Tensor) -> None:
        """Move the selection biases by the loads [layers, E] of the whole step; the same on all processes."""
        for stage in self._stages():
            encoder = stage.model.base_model.encoder
            own = sum(block.is_routed for block in encoder.layers)
            first = stage.first_expert_layer
            stage.model.update_expert_bias(loads[first : first + own])

    def _stages(self) -> list[Stage]:
        return list(self.stages)  # type: ignore[arg-type]

    def _held_parameter(self, name: str, parameter: Tensor, placement: Placement) -> Held:
        layout = self.layout
        is_owned = (placement.by_tensor_parallelism or layout.rank("tp") == 0) and not placement.is_repeated
        if not isinstance(parameter, DTensor):
            return Held(name, parameter, placement, 0, is_owned)
        by_experts = placement.by_expert_parallelism
        grid, dim = (layout.experts, "dp_shard") if by_experts else (layout.dense, "fsdp")
        first, _ = even_span(parameter.shape[0], grid.get_group(dim).size(), grid.get_local_rank(dim))
        return Held(name, parameter, placement, first, is_owned and layout.dense.get_local_rank("dp_replicate") == 0)

    def _pipeline(self, batches: Sequence[Batch]) -> Pipeline:
        rows, length = batches[0]["input_ids"].shape
        key = (len(batches), rows, length)
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(
                self._stages(),
                layout=self.layout,
                num_micro_batches=len(batches),
                shape=(rows, length, self.config.hidden_size),
                dtype=next(self.stages.parameters()).dtype,
                occupancy=self.occupancy,
            )
        return self._pipelines[key]

    def gradients(self) -> list[Tensor]:
        """The gradients in this process's memory, after `backward`."""
        return [local(held.tensor.grad) for held in self.held(buffers=False) if held.tensor.grad is not None]

    def add_up_gradients(self) -> None:
        """Complete the gradients that other processes have parts of, after all backward passes."""
        tied = []
        for held in self.held(buffers=False):
            if held.tensor.grad is None:
                held.tensor.grad = torch.zeros_like(held.tensor)  # a stage of pads only: others take part all the same
            gradient = local(held.tensor.grad)
            if held.name in self._added_up:
                dist.all_reduce(gradient, group=self.layout.group("tp"))
            if held.name == TIED:
                tied.append(gradient)
        self._add_up_tied(tied)

    def _add_up_tied(self, gradients: list[Tensor]) -> None:
        """Give the first stage's embeddings and the last one's projection, which are one tensor, one gradient."""
        if self.layout.options.pp == 1 or not gradients:
            return
        if len(gradients) == 2:  # both stages are here
            total = gradients[0] + gradients[1]
        else:
            group = self.layout.group("pp")
            peer = dist.get_global_rank(group, group.size() - 1 - group.rank())
            other = torch.empty_like(gradients[0])
            swaps = [dist.P2POp(dist.isend, gradients[0].contiguous(), peer, group)]
            swaps.append(dist.P2POp(dist.irecv, other, peer, group))
            for swap in dist.batch_isend_irecv(swaps):
                swap.wait()
            total = gradients[0] + other
        for gradient in gradients:
            gradient.copy_(total)


def check_model(
    model: Any, options: ParallelOptions, *, num_micro_batches: int, checkpointing: ActivationCheckpointing = "none"
) -> None:
    """Refuse a layout that the model cannot be cut to.

    Args:
        model: a whole head of sortyard.model.
        options: the layout, dp_shard resolved.
        num_micro_batches: of a step.
        checkpointing: what layers compute again.

    Raises:
        InputError: naming the option that does not fit.
    """
    config = model.config
    check_combination(options, context=config.context, router=config.router, checkpointing=checkpointing)
    check_schedule(options, config.num_hidden_layers, num_micro_batches=num_micro_batches)
    blocks = model.base_model.encoder.layers
    if options.tp > 1:
        try:
            model.check_divides(options.tp)
        except InputError as error:
            raise InputError(f"parallel.tp: {error}") from None
    if options.ep > 1 and not any(block.is_routed for block in blocks):
        raise InputError(f"parallel.ep is {options.ep}, but the model has no experts; set it to 1")
    if options.ep > 1 and config.num_experts % options.ep:
        raise InputError(
            f"parallel.ep is {options.ep}, which does not divide model.num_experts {config.num_experts}: each process "
            "holds as many experts as any other"
        )


def parallelize(
    model: Any,
    *,
    layout: Layout,
    count_targets: Callable[[Batch], int],
    autocast: Callable[[], AbstractContextManager[Any]],
    set_layers: Callable[[Any], None] = lambda _: None,
    counts_traffic: bool = True,
) -> SplitModel:
    """Cut a whole model to what this process holds; every process calls this with the same model.

    The order: stages, experts, widths, recomputation and compilation, device, then data parallelism around the rest.
    Nothing in the model's own code knows of it.

    Args:
        model: a head of sortyard.model with the weights to start from; it is used up.
        layout: the processes.
        count_targets: of a batch.
        autocast: the context of a forward pass.
        set_layers: makes the layers of a part of the model recompute activations, or compiles them.
        counts_traffic: whether the first step counts what it exchanges.
    """
    options = layout.options
    indices = stages_of(options, rank=layout.rank("pp"))
    stages, all_placements, added_up = [], [], []
    for index in indices:
        part = model if index == indices[-1] else copy.deepcopy(model)
        before = prune(part, index, options.num_stages)
        placements = {name: Placement.of(parameter) for name, parameter in part.named_parameters()}
        if options.ep > 1:
            cut_experts(part, group=layout.group("ep"), placements=placements)
        if options.tp > 1:
            cut_by_plan(part, group=layout.group("tp"), placements=placements)
            added_up += share_layers(part, group=layout.group("tp"), by_tokens=options.sequence_parallel)
        if layout.data.size() > 1:
            balance_over(part, group=layout.data)
        if index > 0 and TIED in placements:
            placements[TIED] = replace(placements[TIED], is_repeated=True)
        set_layers(part)
        part.to(layout.device).train()
        stage = Stage(
            part, index, options.num_stages, first_expert_layer=before, count_targets=count_targets, autocast=autocast
        )
        shard_stage(stage, layout)
        stages.append(stage)
        all_placements.append(placements)
    return SplitModel(
        stages, layout=layout, placements=all_placements, added_up=added_up, counts_traffic=counts_traffic
    )


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process's memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
