"""One optimizer step of a model that several processes train together; every process returns the same result."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sortyard.parallel import KINDS
from sortyard.parallel.apply import SplitModel, local
from sortyard.parallel.peers import told_of_losses
from sortyard.parallel.stage import Shares, StageReport
from sortyard.training.precision import Precision
from sortyard.training.step import Outcome, StepResult, dropout_seed

_TASK, _BALANCE, _SPARSITY, _SQUARES, _BUSY, _WHOLE, _TRAFFIC = range(7)
_FIXED = _TRAFFIC + len(KINDS)


@dataclass(frozen=True)
class SplitStepper:
    """Takes steps as `Stepper` does, each process with its rows of every micro-batch.

    Args:
        model: this process's part.
        count_targets: of a batch.
        optimizer: over the parameters held here.
        precision: number format; the stages' autocast and the loss scale.
        max_grad_norm: largest gradient norm over all processes; 0 = no clipping.
        lr: learning rate of a step, counted from 0.
        seed: the run's seed.
    """

    model: SplitModel
    count_targets: Callable[[Mapping[str, Tensor]], int]
    optimizer: torch.optim.Optimizer
    precision: Precision
    max_grad_norm: float
    lr: Callable[[int], float]
    seed: int

    def take(self, micro_batches: Sequence[Mapping[str, Tensor]], *, step: int) -> StepResult:
        """Take one step.

        Args:
            micro_batches: this process's rows of each micro-batch, on the CPU.
            step: number of the step, from 0.

        Raises:
            LostProcessError: another process is gone.
        """
        with told_of_losses():
            return self._take(micro_batches, step=step)

    def _take(self, micro_batches: Sequence[Mapping[str, Tensor]], *, step: int) -> StepResult:
        lr = self.lr(step)
        counts = self._counts(micro_batches)
        num_targets, num_tokens = int(counts[0].sum()), int(counts[1].sum())
        if num_targets == 0:
            return StepResult("no_targets", lr, num_tokens=num_tokens)

        data_rank, device = self.model.layout.data_rank, self.precision.device
        shares = Shares(
            num_targets,
            counts[0].tolist(),
            self.precision.loss_scale(),
            [dropout_seed(self.seed, step=step, micro=micro, share=data_rank) for micro in range(len(micro_batches))],
        )
        batches = [{name: value.to(device) for name, value in batch.items()} for batch in micro_batches]
        reports = self.model.backward(batches, shares)
        self._unscale(shares.loss_scale)
        result = self._result(reports, lr=lr, num_micro_batches=len(batches), num_tokens=num_tokens)
        self._update(result)
        return result

    def _counts(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Targets and real tokens [2, micro-batches] over all rows."""
        own = [[self.count_targets(batch), int(batch["attention_mask"].sum())] for batch in micro_batches]
        counts = torch.tensor(own, dtype=torch.int64, device=self.precision.device).T.contiguous()
        dist.all_reduce(counts, group=self.model.layout.data)
        return counts.cpu()

    def _unscale(self, loss_scale: float) -> None:
        if loss_scale != 1:
            for held in self.model.held(buffers=False):
                local(held.tensor.grad).div_(loss_scale)  # type: ignore[arg-type]

    def _result(
        self, reports: Sequence[StageReport], *, lr: float, num_micro_batches: int, num_tokens: int
    ) -> StepResult:
        """Add up what all processes saw, in one exchange."""
        layout, config = self.model.layout, self.model.config
        num_layers = self.model.num_expert_layers
        loads = torch.zeros(num_layers, max(1, config.num_experts), dtype=torch.float64, device=self.precision.device)
        sums = loads.new_zeros(_FIXED + num_micro_batches)
        if layout.tensor_rank == 0:
            for report in reports:
                for layer, copies in report.loads.items():
                    loads[layer] += copies
                sums[_SPARSITY] += report.sparsity / num_micro_batches / layout.data_size
                if report.task is not None and report.balance is not None:
                    sums[_TASK] += report.task
                    sums[_BALANCE] += report.balance.sum() / layout.data_size
                    sums[_FIXED + report.micro] += float(not torch.isfinite(report.task + report.balance.sum()))
        sums[_SQUARES] = self._squares()
        sums[_BUSY], sums[_WHOLE] = self.model.occupancy.take()
        sums[_TRAFFIC:_FIXED] = torch.tensor([self.model.traffic.get(kind, 0) for kind in KINDS])
        together = torch.cat([sums, loads.flatten()])
        dist.all_reduce(together)
        values = together[: len(sums)].tolist()
        loads = together[len(sums) :].view_as(loads)

        grad_norm = math.sqrt(values[_SQUARES])
        outcome, bad = self._judge(values[_FIXED:], grad_norm)
        return StepResult(
            outcome,
            lr,
            task_loss=values[_TASK],
            balance_loss=values[_BALANCE],
            grad_norm=grad_norm,
            num_tokens=num_tokens,
            sparsity=values[_SPARSITY],
            expert_loads=loads.float().cpu() if num_layers else None,
            bad_micro_batch=bad,
            bubble_share=1 - values[_BUSY] / values[_WHOLE] if values[_WHOLE] else None,
            traffic=_by_kind(values[_TRAFFIC:_FIXED]) if self.model.traffic else None,
        )

    def _squares(self) -> Tensor:
        """Sum of the squared gradients that this process answers for."""
        total = torch.zeros((), dtype=torch.float64, device=self.precision.device)
        for held in self.model.held(buffers=False):
            if held.is_owned and held.tensor.grad is not None:
                total += local(held.tensor.grad).double().square().sum()
        return total

    def _judge(self, not_finite: Sequence[float], grad_norm: float) -> tuple[Outcome, int]:
        for micro, count in enumerate(not_finite):
            if count:
                return "bad", micro
        if not math.isfinite(grad_norm):
            return ("overflow" if self.precision.may_overflow() else "bad"), -1
        return "updated", -1

    def _update(self, result: StepResult) -> None:
        if result.outcome == "updated":
            self._clip(result.grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = result.lr
            self.optimizer.step()
            if result.expert_loads is not None:
                self.model.update_expert_bias(result.expert_loads.to(self.precision.device))
        self.precision.settle(overflowed=result.outcome in ("overflow", "bad"))
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self, grad_norm: float) -> None:
        factor = self.max_grad_norm / (grad_norm + 1e-6) if self.max_grad_norm else 1.0  # as torch's own clipping
        if factor < 1:
            for held in self.model.held(buffers=False):
                local(held.tensor.grad).mul_(factor)  # type: ignore[arg-type]


def _by_kind(counts: Sequence[float]) -> dict[str, int]:
    return {kind: int(count) for kind, count in zip(KINDS, counts, strict=True)}
