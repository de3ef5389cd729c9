"""Micro-batches through the stages of a pipeline, forward and backward, in the order of a schedule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from sortyard.errors import InputError
from sortyard.parallel.mesh import Layout
from sortyard.parallel.occupancy import Occupancy, time_passes
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.stage import Stage


def check_schedule(options: ParallelOptions, num_layers: int, *, num_micro_batches: int) -> None:
    """Refuse a pipeline that cannot be.

    Args:
        options: the layout.
        num_layers: of the model.
        num_micro_batches: of a step.

    Raises:
        InputError: there are fewer layers than stages, micro-batches that the schedule cannot take, or a torch that
            cannot run it.
    """
    if options.pp == 1:
        return
    stages = options.num_stages
    if num_layers < stages:
        raise InputError(
            f"parallel: pp {options.pp} with schedule {options.schedule} has {stages} stages, but the model only "
            f"{num_layers} layers; lower pp"
        )
    rounds = max(1, num_micro_batches // options.pp)
    if options.schedule.startswith("interleaved") and num_micro_batches % rounds:
        raise InputError(
            f"parallel: schedule {options.schedule} takes micro-batches in {rounds} rounds, which "
            f"loop.accumulation_steps {num_micro_batches} does not divide into; choose a multiple of pp {options.pp}"
        )
    if "zero_bubble" in options.schedule and not can_split_backward():
        raise InputError(
            f"parallel.schedule {options.schedule} needs torch 2.13 or newer, and this is torch {torch.__version__}: "
            "install a newer one, or choose 1f1b or interleaved_1f1b"
        )


def can_split_backward() -> bool:
    """Whether this torch can take a backward pass in two, for its inputs and for its weights, through own functions."""
    return torch.__version__ >= "2.13"


class Pipeline:
    """This process's stages, bound to those of the others.

    Args:
        stages: held here, in order.
        layout: the processes.
        num_micro_batches: of a step.
        shape: of this process's states [B, T, D].
        dtype: of the states.
        occupancy: told how long passes and schedules take.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        layout: Layout,
        num_micro_batches: int,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        occupancy: Occupancy,
    ) -> None:
        options = layout.options
        self.num_micro_batches, self._occupancy = num_micro_batches, occupancy
        self.is_first = any(stage.is_first for stage in stages)
        self.is_last = any(stage.is_last for stage in stages)
        group = layout.group("pp")
        bound: list[Any] = [
            PipelineStage(
                stage,
                stage.index,
                options.num_stages,
                layout.device,
                input_args=_examples(stage, shape, dtype, is_input=True),
                output_args=_examples(stage, shape, dtype, is_input=False),
                group=group,
            )
            for stage in stages
        ]
        for stage in bound:
            time_passes(stage, occupancy)
        name = options.schedule
        if name == "1f1b" and num_micro_batches < options.num_stages:
            name = "gpipe"  # the same order then, and torch's 1F1B refuses so few
        kind = get_schedule_class(name.replace("_", ""))  # whatever the case
        settings = {"n_microbatches": num_micro_batches, "loss_fn": _of_micro_batch, "scale_grads": False}
        one_stage = options.num_stages == options.pp
        self._schedule = kind(bound[0], **settings) if one_stage else kind(bound, **settings)

    def run(self) -> None:
        """Take every micro-batch that the stages hold forward and backward; gradients add up."""
        numbers = torch.arange(self.num_micro_batches)
        inputs = (numbers,) if self.is_first else ()
        with self._occupancy.timing("schedule"):
            try:
                self._schedule.step(*inputs, micro=numbers, **({"target": numbers} if self.is_last else {}))
            except RuntimeError as error:
                if "failed to run" not in str(error):
                    raise
                raise error.__cause__ or error  # noqa: B904 - torch's own tells the shapes, not what happened


def _of_micro_batch(loss: Tensor, _number: Tensor) -> Tensor:
    return loss.sum()


def _examples(stage: Stage, shape: tuple[int, int, int], dtype: torch.dtype, *, is_input: bool) -> Any:
    """Tensors without content that say what goes in and comes out."""
    if is_input and stage.is_first:
        return torch.empty(1, dtype=torch.int64, device="meta")
    if not is_input and stage.is_last:
        return torch.empty(1, dtype=dtype, device="meta", requires_grad=True)
    return (
        torch.empty(shape, dtype=dtype, device="meta", requires_grad=True),
        torch.empty(1, dtype=dtype, device="meta", requires_grad=True),
    )
