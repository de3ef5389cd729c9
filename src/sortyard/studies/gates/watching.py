"""Which experts the tokens of each mode, or of each source of text, were sent to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.evaluation.routing import mutual_information, utilisation
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.routing import RoutingRecord

Json = dict[str, Any]


class ExpertWatch:
    """Counts routed copies by kind of sequence and expert, layer by layer.

    Args:
        num_kinds: Kinds that sequences are of.
        layers: The expert layers, in order.
    """

    def __init__(self, num_kinds: int, layers: list[ExpertLayer]) -> None:
        self.kinds = torch.zeros(0, dtype=torch.long)
        self._counts = [torch.zeros(num_kinds, layer.num_experts, dtype=torch.long) for layer in layers]

    def expect(self, kinds: Tensor) -> None:
        """Say of which kind each row [B] of the next batch is."""
        self.kinds = kinds

    def count(self, layer: int, record: RoutingRecord) -> None:
        """Add a layer's choices; padding, whose expert is E, is left out."""
        num_kinds, num_experts = self._counts[layer].shape
        of_token = self.kinds.repeat_interleave(len(record.experts) // len(self.kinds))  # [N]
        cells = of_token[:, None] * (num_experts + 1) + record.experts.cpu()
        found = torch.bincount(cells.flatten(), minlength=num_kinds * (num_experts + 1))
        self._counts[layer] += found.view(num_kinds, num_experts + 1)[:, :num_experts]

    def summary(self) -> Json:
        """Mutual information of expert and kind in bits, and utilisation, by layer; nothing without experts."""
        if not self._counts:
            return {}
        return {
            "mutual_information": [mutual_information(counts.numpy()) for counts in self._counts],
            "utilisation": [float(utilisation(counts.sum(0).numpy())) for counts in self._counts],
        }


@contextmanager
def watch_experts(model: nn.Module, *, num_kinds: int) -> Iterator[ExpertWatch]:
    """Count a model's routing, in evaluation mode.

    Args:
        model: A model with or without expert layers.
        num_kinds: Kinds that sequences are of.

    Yields:
        The counter; call its `expect` before each forward pass.
    """
    layers = [module for module in model.modules() if isinstance(module, ExpertLayer)]
    watch = ExpertWatch(num_kinds, layers)

    def hook(number: int) -> Any:
        def count(module: nn.Module, args: Any, output: tuple[Tensor, RoutingRecord]) -> None:
            del module, args
            watch.count(number, output[1])

        return count

    hooks = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers)]
    was_training = model.training
    model.eval()
    try:
        yield watch
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
