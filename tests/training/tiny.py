"""A model, its data and a run small enough to train in milliseconds, with the faces that the loop relies on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.runs.folder import RunFolder
from sortyard.training.loop import TrainResult, train
from sortyard.training.options import LoopOptions, OptimizerOptions, ScheduleOptions
from sortyard.training.pieces import Piece

VOCAB, WIDTH, EXPERTS, LENGTH = 32, 16, 4, 12


@dataclass
class TinyOutput:
    loss: Tensor
    task_loss: Tensor
    aux_loss: Tensor | None
    expert_loads: Tensor | None
    sparsity: float | None = 0.5


class TinyModel(nn.Module):
    """Embeddings, one routed layer with a selection bias, dropout and a tied projection."""

    def __init__(self, *, seed: int = 0, dropout: float = 0.1, balance_coef: float = 0.01):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.Embedding(VOCAB, WIDTH)
            self.gate = nn.Linear(WIDTH, EXPERTS)
            self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5)
            self.experts_bias = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
            self.norm = nn.LayerNorm(WIDTH)
            self.decoder = nn.Linear(WIDTH, VOCAB, bias=False)
        self.decoder.weight = self.embeddings.weight
        self.register_buffer("selection_bias", torch.zeros(EXPERTS))
        self.dropout = dropout
        self.balance_coef = balance_coef
        self.checkpointing = False
        self.poison: set[int] = set()  # numbers of the forward passes whose loss becomes NaN
        self.num_forwards = 0

    def gradient_checkpointing_enable(self, kwargs: dict[str, Any]) -> None:
        assert kwargs == {"use_reentrant": False}
        self.checkpointing = True

    def update_expert_bias(self, expert_loads: Tensor) -> None:
        self.selection_bias += 1e-3 * torch.sign(expert_loads[0].mean() - expert_loads[0])

    def save_pretrained(self, folder: Path) -> None:
        save_file({"weight": self.embeddings.weight.detach().contiguous()}, folder / "model.safetensors")

    def block(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.sigmoid(self.gate(hidden))
        choice = (gates + self.selection_bias).argmax(-1)
        mixed = torch.einsum("btd,btdf->btf", hidden, self.experts[choice]) + self.experts_bias[choice]
        mixed = mixed * gates.gather(-1, choice[..., None])
        loads = F.one_hot(choice, EXPERTS).sum((0, 1))
        return hidden + F.dropout(mixed, self.dropout, training=self.training), loads

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, num_items_in_batch: int) -> TinyOutput:
        hidden = self.embeddings(input_ids)
        if self.checkpointing and self.training:
            hidden, loads = checkpoint(self.block, hidden, use_reentrant=False)
        else:
            hidden, loads = self.block(hidden)
        logits = self.decoder(self.norm(hidden))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        task = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch
        balance = self.balance_coef * hidden.pow(2).mean() * (labels != -100).sum() / num_items_in_batch
        if self.num_forwards in self.poison:
            task = task * float("nan")
        self.num_forwards += 1
        return TinyOutput(task + balance, task, balance, loads[None].float())


class TinySource:
    """Random tokens, a different number of targets in each micro-batch, as a function of the step."""

    def __init__(self, *, micro_batches: int = 2, rows: int = 3, without_targets: tuple[int, ...] = ()):
        self.samples_per_step = micro_batches * rows
        self.steps_per_epoch = 5
        self.micro_batches = micro_batches
        self.rows = rows
        self.without_targets = without_targets
        self.fail_at = -1

    def step(self, step: int, share: tuple[int, int] = (0, 1)) -> list[dict[str, Tensor]]:
        if step == self.fail_at:
            raise RuntimeError("power cut")
        return [self.micro_batch(step, micro) for micro in range(self.micro_batches)]

    def micro_batch(self, step: int, micro: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + micro)
        ids = torch.randint(VOCAB, (self.rows, LENGTH), generator=generator)
        hidden = torch.rand(ids.shape, generator=generator) < 0.15 * (micro + 1)
        if step in self.without_targets:
            hidden[:] = False
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(~hidden, -100)}


def loop_options(**values: Any) -> LoopOptions:
    plain = {"steps": 8, "micro_batch_size": 3, "accumulation_steps": 2, "log_every": 3, "tensorboard": False}
    return LoopOptions(**{**plain, **values})


def new_run(path: Path) -> RunFolder:
    return RunFolder.create(path, recipe="steps: 8\n", resolved="steps: 8\n", environment={"seed": 1})


def train_tiny(run: RunFolder, *, model: TinyModel | None = None, source: TinySource | None = None, **values: Any):
    """Train with small defaults; keyword arguments of `train` by name, all others are options of the loop."""
    others = {name: values.pop(name) for name in ("evaluate", "best_metric", "progress") if name in values}
    result: TrainResult = train(
        model or TinyModel(),
        source=source or TinySource(),
        objective=MaskedLMObjective(),
        loop=loop_options(**values),
        optimizer=OptimizerOptions(lr=0.01),
        schedule=ScheduleOptions(),
        run=run,
        seed=1,
        **others,
    )
    return result


def tensors_of(run: RunFolder, step: int) -> dict[str, Tensor]:
    folder = run.checkpoints / f"step-{step:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def by_name(pieces: list[Piece]) -> dict[str, Tensor]:
    return {piece.name: piece.tensor for piece in pieces}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TIMES = (
    "tokens_per_second", "tokens_per_second_per_process", "flops_per_second", "mfu", "mfu_dense", "bubble_share",
    "memory_bytes", "seconds",
)  # fmt: skip


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]
