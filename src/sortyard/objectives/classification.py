"""Classification and regression of whole sequences: one target per sample."""

from collections.abc import Mapping

from torch import Tensor, nn

from sortyard.objectives.total import StepLoss, loss_of_head


class ClassificationObjective:
    """Cross-entropy where labels are integers, squared error where they are real numbers."""

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of samples with a label; -100 marks a class that is not known."""
        labels = batch["labels"]
        return labels.shape[0] if labels.is_floating_point() else int((labels != -100).sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets samples."""
        return loss_of_head(model, batch, num_targets=num_targets)
