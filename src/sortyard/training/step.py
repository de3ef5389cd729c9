"""One optimizer step: the gradients of its micro-batches, then one update, or a reason why there was none."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sortyard.objectives.total import Objective, StepLoss
from sortyard.training.precision import Precision

Outcome = Literal["updated", "no_targets", "overflow", "bad"]


@dataclass(frozen=True)
class StepResult:
    """What a step did; losses, norm and loads are those of the whole step.

    Args:
        outcome: "updated"; or without an update "no_targets", "overflow" (float16 only, the loss scale falls) or
            "bad" (a loss or gradient is not finite).
        lr: learning rate of the step.
        task_loss: mean over the step's targets.
        balance_loss: the experts' balance loss.
        grad_norm: norm of the gradient before clipping.
        num_tokens: real tokens in the step's micro-batches.
        sparsity: mean share of query-key pairs not computed.
        expert_loads: routed copies [layers, experts] on the CPU; None without experts.
        bad_micro_batch: first micro-batch whose loss is not finite; -1 where only the gradient is not, or all is well.
        bubble_share: measured share of the time in which the processes of a pipeline waited; None without one.
        traffic: bytes by kind that all processes exchanged in their first step; None in one process.
    """

    outcome: Outcome
    lr: float
    task_loss: float = 0.0
    balance_loss: float = 0.0
    grad_norm: float = 0.0
    num_tokens: int = 0
    sparsity: float = 0.0
    expert_loads: Tensor | None = None
    bad_micro_batch: int = -1
    bubble_share: float | None = None
    traffic: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Stepper:
    """Takes steps with one model.

    Args:
        model: a head in training mode.
        objective: what to minimise.
        optimizer: over the model's parameters.
        precision: number format of the forward pass.
        max_grad_norm: largest gradient norm; 0 = no clipping.
        lr: learning rate of a step, counted from 0.
        seed: the run's seed; dropout is a function of it, the step and the micro-batch.
    """

    model: Any
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: Precision
    max_grad_norm: float
    lr: Callable[[int], float]
    seed: int

    def take(self, micro_batches: Sequence[Mapping[str, Tensor]], *, step: int) -> StepResult:
        """Take one step.

        The loss is divided by the number of targets of the whole step, counted before any backward pass, because a
        mean of micro-batch means would weigh targets unequally.

        Args:
            micro_batches: keyword arguments of the model's forward, on the CPU.
            step: number of the step, from 0.
        """
        lr = self.lr(step)
        num_targets = sum(self.objective.count_targets(batch) for batch in micro_batches)
        num_tokens = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
        if num_targets == 0:
            return StepResult("no_targets", lr, num_tokens=num_tokens)

        losses = [
            self._backward(batch, num_targets=num_targets, seed=dropout_seed(self.seed, step=step, micro=micro))
            for micro, batch in enumerate(micro_batches)
        ]
        self.precision.scaler.unscale_(self.optimizer)
        grad_norm = self._clip()
        outcome, bad_micro_batch = _judge(losses, grad_norm=grad_norm, may_overflow=self.precision.may_overflow())
        result = StepResult(
            outcome,
            lr,
            task_loss=sum(float(loss.task) for loss in losses),
            balance_loss=sum(float(loss.balance) for loss in losses if loss.balance is not None),
            grad_norm=grad_norm,
            num_tokens=num_tokens,
            sparsity=sum(loss.sparsity for loss in losses) / len(losses),
            expert_loads=_add_loads(losses),
            bad_micro_batch=bad_micro_batch,
        )
        self._update(result)
        return result

    def _backward(self, batch: Mapping[str, Tensor], *, num_targets: int, seed: int) -> StepLoss:
        torch.manual_seed(seed)
        on_device = {name: value.to(self.precision.device, non_blocking=True) for name, value in batch.items()}
        with self.precision.autocast():
            loss = self.objective.compute(self.model, on_device, num_targets=num_targets)
        self.precision.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
        return replace(loss, total=loss.total.detach())

    def _clip(self) -> float:
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self.max_grad_norm and bool(torch.isfinite(norm)):
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return float(norm)

    def _update(self, result: StepResult) -> None:
        if result.outcome == "updated":
            for group in self.optimizer.param_groups:
                group["lr"] = result.lr
            self.precision.scaler.step(self.optimizer)
            if result.expert_loads is not None:
                self.model.update_expert_bias(result.expert_loads.to(self.precision.device))
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def dropout_seed(seed: int, *, step: int, micro: int, share: int = 0) -> int:
    """Seed of torch's generator for one micro-batch, so that dropout needs no saved generator state.

    Args:
        seed: the run's seed.
        step: number of the step.
        micro: number of the micro-batch.
        share: which share of its rows, where several processes have one each.
    """
    text = f"dropout {seed} {step} {micro}" + (f" {share}" if share else "")
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _judge(losses: Sequence[StepLoss], *, grad_norm: float, may_overflow: bool) -> tuple[Outcome, int]:
    """The step's outcome, and the first micro-batch whose loss is not finite, or -1."""
    for micro, loss in enumerate(losses):
        if not bool(torch.isfinite(loss.total)):
            return "bad", micro
    if not math.isfinite(grad_norm):
        return "overflow" if may_overflow else "bad", -1
    return "updated", -1


def _add_loads(losses: Sequence[StepLoss]) -> Tensor | None:
    loads = [loss.expert_loads for loss in losses if loss.expert_loads is not None]
    return torch.stack(loads).sum(0).cpu() if loads else None
