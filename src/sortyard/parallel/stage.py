"""One pipeline stage: some of a model's layers, and whatever comes before the first or after the last of them.

A model that is not cut into stages is one stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.parallel.options import layer_span

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shares:
    """What a step's micro-batches count for; the same on all processes.

    Args:
        num_targets: targets of the step.
        of_micro_batch: targets of each micro-batch, over all processes.
        loss_scale: factor on the loss before its backward pass.
        seeds: of dropout, for each micro-batch.
    """

    num_targets: int
    of_micro_batch: Sequence[int]
    loss_scale: float
    seeds: Sequence[int]


@dataclass
class StageReport:
    """What a stage saw of one micro-batch, of this process's rows.

    Args:
        micro: number of the micro-batch.
        loads: routed copies by place of the expert layer among all of the model, [E] each.
        sparsity: of the stage's bucket layers, by their share of the model's.
        task: sum over targets / targets of the step; None before the last stage.
        balance: balance loss of all rows by the micro-batch's share of the targets; None before the last stage.
    """

    micro: int
    loads: dict[int, Tensor]
    sparsity: float
    task: Tensor | None = None
    balance: Tensor | None = None


class Stage(nn.Module):
    """Runs a micro-batch by its number; all but the first stage receive states and the balance loss so far.

    Args:
        model: a head of sortyard.model that has this stage's layers only.
        index: of the stage.
        num_stages: of the whole model.
        first_expert_layer: expert layers of earlier stages.
        count_targets: of a batch.
        autocast: the context of a forward pass.
    """

    def __init__(
        self,
        model: Any,
        index: int,
        num_stages: int,
        *,
        first_expert_layer: int,
        count_targets: Callable[[Batch], int],
        autocast: Callable[[], Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.index = index
        self.is_first, self.is_last = index == 0, index == num_stages - 1
        self.first_expert_layer = first_expert_layer
        self.count_targets = count_targets
        self.autocast = autocast
        self.batches: Sequence[Batch] = ()
        self.shares = Shares(1, (), 1.0, ())
        self.reports: dict[int, StageReport] = {}

    def load(self, batches: Sequence[Batch], shares: Shares) -> None:
        """Take a step's micro-batches, this process's rows of them, on its device."""
        self.batches, self.shares, self.reports = batches, shares, {}

    def forward(self, *received: Tensor, micro: Tensor | int) -> Tensor | tuple[Tensor, Tensor]:
        """Run one micro-batch.

        Args:
            *received: states [B, T, D] and balance loss [1]; the first stage ignores what it gets.
            micro: number of the micro-batch.

        Returns:
            The loss [1] of the last stage, scaled; of others the states and the balance loss.
        """
        number = int(micro)
        batch = dict(self.batches[number])
        if not self.is_first:
            batch.pop("input_ids")
            batch["inputs_embeds"] = received[0]
        torch.manual_seed(self.shares.seeds[number] + self.index)  # stages drop different units
        with self.autocast():
            if self.is_last:
                return self._loss(number, batch, received)
            batch.pop("labels")
            outputs = self.model.base_model(**batch, output_statistics=True)
        self.reports[number] = self._report(number, outputs)
        states = outputs.last_hidden_state
        dtype = next((parameter.dtype for parameter in self.parameters()), states.dtype)  # which the next stage expects
        states = states.to(dtype)
        return states, self._balance(outputs.aux_loss, received, none=states.flatten()[0] * 0)

    def _loss(self, number: int, batch: dict[str, Tensor], received: tuple[Tensor, ...]) -> Tensor:
        outputs = self.model(**batch)  # the means of this process's targets, and a balance loss without a share
        num_targets = self.count_targets(batch)
        task = outputs.task_loss * (num_targets / self.shares.num_targets)
        share = self.shares.of_micro_batch[number] / self.shares.num_targets
        none = torch.zeros_like(outputs.task_loss)
        balance = self._balance(outputs.aux_loss, received, none=none) * share
        report = self._report(number, outputs)
        report.task, report.balance = task.detach(), balance.detach()
        self.reports[number] = report
        loss: Tensor = (task + balance) * self.shares.loss_scale
        return loss

    def _balance(self, own: Tensor | None, received: tuple[Tensor, ...], *, none: Tensor) -> Tensor:
        """The balance loss up to this stage [1], always a part of the graph, as pipelines expect a gradient for it."""
        own = (none if own is None else own).reshape(1)
        return own if self.is_first else own + received[1]

    def _report(self, number: int, outputs: Any) -> StageReport:
        loads = {} if outputs.expert_loads is None else dict(enumerate(outputs.expert_loads, self.first_expert_layer))
        encoder = self.model.base_model.encoder
        own = sum(hasattr(block.attention.core, "sparsity") for block in encoder.layers)
        return StageReport(number, loads, (outputs.sparsity or 0.0) * own / max(1, encoder.num_bucket_layers))


class _Received(nn.Module):
    """In place of the embeddings: what the stage before sends is embedded already."""

    def __init__(self, word_embeddings: nn.Module | None) -> None:
        super().__init__()
        if word_embeddings is not None:  # the last stage projects onto the vocabulary with them
            self.word_embeddings = word_embeddings

    def forward(self, inputs_embeds: Tensor, *_: Any, **__: Any) -> Tensor:
        return inputs_embeds


def prune(part: Any, index: int, num_stages: int) -> int:
    """Leave of a model what a stage runs.

    Layers keep their names. Weights that the first and the last stage share are in both.

    Args:
        part: a whole head of sortyard.model.
        index: of the stage.
        num_stages: of the whole model.

    Returns:
        How many expert layers come before it.
    """
    encoder = part.base_model.encoder
    first, end = layer_span(len(encoder.layers), num_stages, index)
    before = sum(block.is_routed for block in list(encoder.layers)[:first])
    for layer in [*range(first), *range(end, len(encoder.layers))]:
        del encoder.layers._modules[str(layer)]
    is_last = index == num_stages - 1
    if index > 0:
        is_tied = is_last and hasattr(part, "decoder")
        part.base_model.embeddings = _Received(part.base_model.embeddings.word_embeddings if is_tied else None)
    if not is_last:
        encoder.final_norm = nn.Identity()
        for name in [name for name, _ in part.named_children() if name != part.base_model_prefix]:
            delattr(part, name)
    return int(before)
