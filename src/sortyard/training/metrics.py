"""What a run measures about itself between two lines of metrics.jsonl."""

import resource
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sortyard.parallel import KINDS
from sortyard.training.step import StepResult

Loads = npt.NDArray[np.float64]


@dataclass
class Window:
    """Sums over the steps since the last line; part of the training state, so that a resumed run logs the same lines.

    Steps without an update count only in tokens and seconds.
    """

    updates: int = 0
    task_loss: float = 0.0
    balance_loss: float = 0.0
    grad_norm: float = 0.0
    sparsity: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    bubble_share: float | None = None
    traffic: dict[str, int] | None = None
    expert_loads: list[list[float]] | None = None

    def add(self, result: StepResult, *, seconds: float) -> None:
        """Count one step."""
        self.tokens += result.num_tokens
        self.seconds += seconds
        if result.outcome != "updated":
            return
        self.updates += 1
        self.task_loss += result.task_loss
        self.balance_loss += result.balance_loss
        self.grad_norm += result.grad_norm
        self.sparsity += result.sparsity
        if result.bubble_share is not None:
            self.bubble_share = (self.bubble_share or 0.0) + result.bubble_share
        self.traffic = None if result.traffic is None else dict(result.traffic)
        if result.expert_loads is not None:
            loads = result.expert_loads.double().numpy()
            self.expert_loads = (loads if self.expert_loads is None else loads + np.array(self.expert_loads)).tolist()

    def loads(self) -> Loads | None:
        """Routed copies [layers, experts]; None without experts or without an update."""
        return None if self.expert_loads is None else np.array(self.expert_loads)

    def averages(self) -> dict[str, float | None]:
        """The window's part of a metrics line; null where no step made an update."""
        sums = {name: getattr(self, name) for name in ("task_loss", "balance_loss", "grad_norm", "sparsity")}
        means = {name: value / self.updates if self.updates else None for name, value in sums.items()}
        loss = (self.task_loss + self.balance_loss) / self.updates if self.updates else None
        loads = self.loads()
        return {
            "loss": loss,
            **means,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "utilisation": None if loads is None else utilisation(loads),
            "experts_used": None if loads is None else experts_used(loads),
            "bubble_share": None if self.bubble_share is None else self.bubble_share / self.updates,
            **{f"{kind}_bytes": None if self.traffic is None else self.traffic[kind] for kind in KINDS},
        }


def load_shares(loads: Loads) -> Loads:
    """Loads [layers, experts] as shares of each layer's sum; a layer without any stays at 0."""
    sums = loads.sum(axis=1, keepdims=True)
    shares: Loads = np.divide(loads, sums, out=np.zeros_like(loads), where=sums > 0)
    return shares


def utilisation(loads: Loads) -> float:
    """Smallest exp(entropy of the load) / number of experts over the layers: 1 = even, 1 / experts = all to one."""
    shares = load_shares(loads)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(np.exp(-(shares * logs).sum(axis=1)).min() / loads.shape[1])


def experts_used(loads: Loads) -> int:
    """Smallest number of experts with a load over the layers."""
    return int((loads > 0).sum(axis=1).min())


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the GPU's allocations, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
