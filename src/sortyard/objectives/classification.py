"""Classification and regression of whole sequences, by sortyard's models and by any other library's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sortyard.model.losses import sequence_loss
from sortyard.objectives.total import StepLoss, loss_of_head


class ClassificationObjective:
    """Cross-entropy where labels are integers, squared error where they are real numbers."""

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Number of labels, of which a sample may have several; -100 marks a class that is not known."""
        labels = batch["labels"]
        return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets labels."""
        return loss_of_head(model, batch, num_targets=num_targets)


class LogitsObjective(ClassificationObjective):
    """The same computed from the logits: for heads of other libraries, which know nothing of a step's targets."""

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets labels."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        config: Any = model.config
        loss = sequence_loss(model(**inputs).logits, batch["labels"], config.problem_type).total / num_targets
        return StepLoss(total=loss, task=loss.detach(), balance=None, expert_loads=None, sparsity=0.0)
