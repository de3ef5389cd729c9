"""Fine-tuning models of other libraries, whose heads know nothing of a step's targets."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sortyard.model.losses import sequence_loss
from sortyard.objectives.classification import ClassificationObjective
from sortyard.objectives.total import StepLoss


class LogitsObjective(ClassificationObjective):
    """Classification or regression loss computed from a model's logits, whatever the model does with labels."""

    def compute(self, model: nn.Module, batch: Mapping[str, Tensor], *, num_targets: int) -> StepLoss:
        """Loss of a micro-batch as its share of a step with num_targets samples."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        config: Any = model.config
        loss = sequence_loss(model(**inputs).logits, batch["labels"], config.problem_type).total / num_targets
        return StepLoss(total=loss, task=loss.detach(), balance=None, expert_loads=None, sparsity=0.0)
