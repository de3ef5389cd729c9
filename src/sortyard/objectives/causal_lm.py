"""Causal language modelling: predict the next token."""

from collections.abc import Mapping

from torch import Tensor, nn

from sortyard.objectives.total import StepLoss, loss_of_head


class CausalLMObjective:
    """Cross-entropy of every token given those before it.

    The head shifts the labels by one, so the first position of a row is never a target.
    """

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of labels other than -100 after the first position."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets targets."""
        return loss_of_head(model, batch, num_targets=num_targets)
