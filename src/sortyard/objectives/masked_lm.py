"""Masked language modelling: predict the tokens that were hidden."""

from collections.abc import Mapping

from torch import Tensor, nn

from sortyard.objectives.total import StepLoss, loss_of_head


class MaskedLMObjective:
    """Cross-entropy at the positions whose label is not -100; also for token classification."""

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of labels other than -100."""
        return int((batch["labels"] != -100).sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets targets."""
        return loss_of_head(model, batch, num_targets=num_targets)
