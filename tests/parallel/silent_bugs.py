"""Bugs that change what is learned without any error, each put back for as long as a test asks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from sortyard.parallel import apply, experts, schedule, stage, tensor


def _unscaled_gate(patches: ExitStack) -> None:
    """The weights of the choice meet parts of the experts' outputs, and their gradient stays a part (P3)."""

    def share(layer: Any, group: Any, *, by_tokens: bool) -> None:
        inner = layer.mix
        layer.mix = lambda tokens, routing: tensor.add_up(inner(tensor.hand_out(tokens, group), routing), group)

    patches.enter_context(patch.object(tensor, "_share_experts", share))


def _averaged_gradients(patches: ExitStack) -> None:
    """FSDP divides by the number of processes, though the loss is divided by all targets already (P2)."""
    patches.enter_context(patch.object(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None))


def _local_balance(patches: ExitStack) -> None:
    """The balance loss of each process's own tokens (P4)."""
    patches.enter_context(patch.object(apply, "balance_over", lambda part, *, group: None))


def _mean_of_means(patches: ExitStack) -> None:
    """Every micro-batch counts alike, however many targets it has (P5)."""
    original = stage.Stage.load

    def load(self: Any, batches: Any, shares: Any) -> None:
        each = shares.num_targets // len(batches)
        original(self, batches, replace(shares, of_micro_batch=[each] * len(batches)))
        self.count_targets = lambda batch: each

    patches.enter_context(patch.object(stage.Stage, "load", load))


def _balance_left_behind(patches: ExitStack) -> None:
    """Early stages' balance losses are not passed on (P6)."""

    def balance(self: Any, own: Tensor, received: tuple[Tensor, ...], *, none: Tensor) -> Tensor:
        return own.reshape(1) if self.is_first else own.reshape(1) + received[1] * 0

    patches.enter_context(patch.object(stage.Stage, "_balance", balance))


def _norm_of_own_part(patches: ExitStack) -> None:
    """Gradients are clipped by the norm of what this process holds (P7)."""
    from sortyard.training import split_step

    def squares(self: Any) -> Tensor:
        gradients = [apply.local(held.tensor.grad) for held in self.model.held(buffers=False)]
        total = sum(gradient.double().square().sum() for gradient in gradients)
        return torch.as_tensor(total) / torch.distributed.get_world_size()

    patches.enter_context(patch.object(split_step.SplitStepper, "_squares", squares))


def _norms_of_own_tokens(patches: ExitStack) -> None:
    """Norms that saw this process's tokens keep their part of the gradient."""
    patches.enter_context(patch.object(tensor, "_seen_by_tokens", lambda model: []))


def _tied_weights_apart(patches: ExitStack) -> None:
    """First and last stage learn their copies of the embeddings by themselves."""
    patches.enter_context(patch.object(apply.SplitModel, "_add_up_tied", lambda self, gradients: None))


def _averaged_micro_batches(patches: ExitStack) -> None:
    """The pipeline divides gradients by the number of micro-batches."""
    original = schedule.get_schedule_class

    def averaging(name: str) -> Any:
        kind = original(name)
        return lambda *args, **settings: kind(*args, **(settings | {"scale_grads": True}))

    patches.enter_context(patch.object(schedule, "get_schedule_class", averaging))


def _bias_of_every_process(patches: ExitStack) -> None:
    """An outward bias is added by every process that shares a layer."""

    def share(linear: Any, leave: Any) -> None:
        inner = linear.forward
        linear.forward = lambda hidden: leave(inner(hidden))

    patches.enter_context(patch.object(tensor, "_share_rowwise", share))


def _loads_of_own_tokens(patches: ExitStack) -> None:
    """Selection biases move by what each process's own tokens chose."""

    def update(self: Any, loads: Tensor) -> None:
        for part in self._stages():
            reports = list(part.reports.values())
            for layer in reports[0].loads:
                loads[layer] = sum(report.loads[layer].to(loads) for report in reports)
        original(self, loads)

    original = apply.SplitModel.update_expert_bias
    patches.enter_context(patch.object(apply.SplitModel, "update_expert_bias", update))


def _weights_at_the_expert(patches: ExitStack) -> None:
    """Copies come home without their weights' gradient."""
    original = experts.combine
    patches.enter_context(
        patch.object(
            experts, "combine", lambda copies, order, *, weights: original(copies, order, weights=weights.detach())
        )
    )


# Name: what puts it back, and a layout that it harms.
BUGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gate-gradient-is-a-part": (_unscaled_gate, {"tp": 2}),
    "gradients-are-averaged": (_averaged_gradients, {"dp_shard": 2}),
    "balance-is-local": (_local_balance, {"dp_shard": 2}),
    "mean-of-micro-batch-means": (_mean_of_means, {"dp_shard": 2}),
    "balance-stays-behind": (_balance_left_behind, {"pp": 2}),
    "norm-of-own-part": (_norm_of_own_part, {"tp": 2}),
    "norms-of-own-tokens": (_norms_of_own_tokens, {"tp": 2, "sequence_parallel": True}),
    "tied-weights-apart": (_tied_weights_apart, {"pp": 2}),
    "micro-batches-are-averaged": (_averaged_micro_batches, {"pp": 2}),
    "bias-of-every-process": (_bias_of_every_process, {"tp": 2}),
    "loads-of-own-tokens": (_loads_of_own_tokens, {"dp_replicate": 2}),
    "weights-without-gradient": (_weights_at_the_expert, {"ep": 2}),
}


@contextmanager
def put_back(name: str) -> Iterator[None]:
    """Run with one of the bugs; with none for an empty name."""
    with ExitStack() as patches:
        if name:
            BUGS[name][0](patches)
        yield
