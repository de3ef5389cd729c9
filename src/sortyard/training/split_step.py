"""One optimizer step of a model that several processes train together; every process returns the same result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sortyard.parallel import KINDS
from sortyard.parallel.apply import SplitModel, local
from sortyard.parallel.peers import told_of_losses
from sortyard.parallel.stage import Shares
from sortyard.training.step import Batch, Stepper, StepResult, dropout_seed

_TASK, _BALANCE, _SPARSITY, _SQUARES, _BUSY, _WHOLE, _TRAFFIC = range(7)
_FIXED = _TRAFFIC + len(KINDS)


@dataclass(frozen=True)
class SplitStepper(Stepper):
    """Takes steps as `Stepper` does, each process with its rows of every micro-batch and its part of the model."""

    model: SplitModel

    def take(self, micro_batches: Sequence[Batch], *, step: int) -> StepResult:
        """Take one step, together with the other processes.

        Raises:
            LostProcessError: another process is gone.
        """
        with told_of_losses():
            return super().take(micro_batches, step=step)

    def _counts(self, micro_batches: Sequence[Batch]) -> Tensor:
        counts = super()._counts(micro_batches).to(self.precision.device)
        dist.all_reduce(counts, group=self.model.layout.data)
        return counts.cpu()

    def _gradients(
        self, batches: Sequence[Batch], *, targets: Sequence[int], step: int
    ) -> tuple[dict[str, Any], list[bool]]:
        """Add up what all processes saw, in one exchange."""
        layout, scale = self.model.layout, self.precision.loss_scale()
        seeds = [
            dropout_seed(self.seed, step=step, micro=micro, share=layout.data.rank()) for micro in range(len(batches))
        ]
        reports = self.model.backward(batches, Shares(sum(targets), targets, scale, seeds))
        gradients = self.model.gradients()
        if scale != 1:
            torch._foreach_div_(gradients, scale)

        num_layers, num_experts = self.model.num_expert_layers, max(1, self.model.config.num_experts)
        loads = torch.zeros(num_layers, num_experts, dtype=torch.float64, device=self.precision.device)
        sums = loads.new_zeros(_FIXED + len(batches))
        if layout.rank("tp") == 0:
            for report in reports:
                for layer, copies in report.loads.items():
                    loads[layer] += copies
                sums[_SPARSITY] += report.sparsity / len(batches) / layout.data.size()
                if report.task is not None and report.balance is not None:
                    sums[_TASK] += report.task
                    sums[_BALANCE] += report.balance.sum() / layout.data.size()
                    sums[_FIXED + report.micro] += float(not torch.isfinite(report.task + report.balance.sum()))
        sums[_SQUARES] = self._squares()
        sums[_BUSY], sums[_WHOLE] = self.model.occupancy.take()
        sums[_TRAFFIC:_FIXED] = torch.tensor([self.model.traffic.get(kind, 0) for kind in KINDS])
        together = torch.cat([sums, loads.flatten()])
        dist.all_reduce(together)
        values = together[: len(sums)].tolist()
        loads = together[len(sums) :].view_as(loads)
        counts = {kind: int(count) for kind, count in zip(KINDS, values[_TRAFFIC:_FIXED], strict=True)}
        return {
            "task_loss": values[_TASK],
            "balance_loss": values[_BALANCE],
            "grad_norm": math.sqrt(values[_SQUARES]),
            "sparsity": values[_SPARSITY],
            "expert_loads": loads.float().cpu() if num_layers else None,
            "bubble_share": 1 - values[_BUSY] / values[_WHOLE] if values[_WHOLE] else None,
            "traffic": counts if self.model.traffic else None,
        }, [count == 0 for count in values[_FIXED:]]

    def _squares(self) -> Tensor:
        """Sum of the squared gradients that this process answers for."""
        total = torch.zeros((), dtype=torch.float64, device=self.precision.device)
        for held in self.model.held(buffers=False):
            if held.is_owned and held.tensor.grad is not None:
                total += local(held.tensor.grad).double().square().sum()
        return total

    def _clip(self, grad_norm: float) -> None:
        factor = self.max_grad_norm / (grad_norm + 1e-6)  # as torch's own clipping
        if factor < 1:
            torch._foreach_mul_(self.model.gradients(), factor)
