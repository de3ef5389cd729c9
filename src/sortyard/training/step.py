"""One optimizer step: the gradients of its micro-batches, then one update, or a reason why there was none."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sortyard.objectives.total import Objective
from sortyard.training.precision import Precision

Batch = Mapping[str, Tensor]
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

    def take(self, micro_batches: Sequence[Batch], *, step: int) -> StepResult:
        """Take one step.

        The loss is divided by the number of targets of the whole step, counted before any backward pass, because a
        mean of micro-batch means would weigh targets unequally.

        Args:
            micro_batches: keyword arguments of the model's forward, on the CPU; of several processes, each one's rows.
            step: number of the step, from 0.
        """
        lr = self.lr(step)
        targets, tokens = self._counts(micro_batches)
        result = StepResult("no_targets", lr, num_tokens=int(tokens.sum()))
        if not targets.any():
            return result

        device = self.precision.device
        batches = [{name: value.to(device, non_blocking=True) for name, value in b.items()} for b in micro_batches]
        seen, is_finite = self._gradients(batches, targets=targets.tolist(), step=step)
        result = replace(result, outcome="updated", **seen)
        if not all(is_finite):
            result = replace(result, outcome="bad", bad_micro_batch=is_finite.index(False))
        elif not math.isfinite(result.grad_norm):
            result = replace(result, outcome="overflow" if self.precision.may_overflow() else "bad")
        self._update(result)
        return result

    def _counts(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Targets and real tokens [2, micro-batches], int64 on the CPU."""
        own = [[self.objective.count_targets(batch), int(batch["attention_mask"].sum())] for batch in micro_batches]
        return torch.tensor(own, dtype=torch.int64).T.contiguous()

    def _gradients(
        self, batches: Sequence[Batch], *, targets: Sequence[int], step: int
    ) -> tuple[dict[str, Any], list[bool]]:
        """Leave the step's gradients.

        Args:
            batches: the micro-batches, on the device.
            targets: of each, over all rows.
            step: number of the step.

        Returns:
            Fields of the step's result, and whether each micro-batch's loss is finite.
        """
        scale, losses = self.precision.loss_scale(), []
        for micro, batch in enumerate(batches):
            torch.manual_seed(dropout_seed(self.seed, step=step, micro=micro))
            with self.precision.autocast():
                loss = self.objective.compute(self.model, batch, num_targets=sum(targets))
            (loss.total * scale).backward()  # type: ignore[no-untyped-call]
            losses.append(replace(loss, total=loss.total.detach()))
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        loads = [loss.expert_loads for loss in losses if loss.expert_loads is not None]
        return {
            "task_loss": sum(float(loss.task) for loss in losses),
            "balance_loss": sum(float(loss.balance) for loss in losses if loss.balance is not None),
            "grad_norm": float(torch.nn.utils.get_total_norm(gradients)),
            "sparsity": sum(loss.sparsity for loss in losses) / len(losses),
            "expert_loads": torch.stack(loads).sum(0).cpu() if loads else None,
        }, [bool(torch.isfinite(loss.total)) for loss in losses]

    def _update(self, result: StepResult) -> None:
        if result.outcome == "updated":
            if self.max_grad_norm:
                self._clip(result.grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = result.lr
            self.optimizer.step()
            if result.expert_loads is not None:
                self.model.update_expert_bias(result.expert_loads.to(self.precision.device))
        self.precision.settle(overflowed=result.outcome != "updated")
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self, grad_norm: float) -> None:
        parameters = list(self.model.parameters())
        norm = torch.tensor(grad_norm, dtype=parameters[0].dtype)  # as it came out
        torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)


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
