"""How well a language model fills in held-out text: loss, perplexity, and the share of targets it gets right."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sortyard.data.masking import IGNORED


@dataclass(frozen=True)
class LanguageModelScore:
    """Means over every target of the held-out batches."""

    loss: float  # nats per target
    perplexity: float
    accuracy: float
    num_targets: int

    def metrics(self) -> dict[str, float]:
        """Return the values as one flat dictionary."""
        return asdict(self)


def evaluate_language_model(
    model: Any, *, batches: Iterable[Mapping[str, torch.Tensor]], causal: bool = False
) -> LanguageModelScore:
    """Score a masked or causal language model.

    Every target counts the same whichever batch it falls in; sums are kept in float64 on the device, so the host
    waits once, at the end. The model is put in evaluation mode for the duration.

    Args:
        model: returns `.logits` [B, T, V] when called with a batch without its labels.
        batches: dictionaries with `input_ids` and `labels` (-100 = no target) and any other inputs of the model.
        causal: whether logits at a position predict the next position's label, as in transformers.

    Returns:
        Loss in nats, perplexity (infinite where the loss overflows it), and accuracy.

    Raises:
        ValueError: the batches hold no target.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [_batch_sums(model, batch, causal=causal) for batch in batches]
    finally:
        model.train(was_training)
    loss, correct, count = torch.stack(parts).sum(0).tolist() if parts else (0.0, 0.0, 0.0)
    if count == 0:
        raise ValueError("the held-out batches hold no targets; give more text or a higher masking probability")
    mean = loss / count
    return LanguageModelScore(
        loss=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        accuracy=correct / count,
        num_targets=int(count),
    )


def _batch_sums(model: Any, batch: Mapping[str, torch.Tensor], *, causal: bool) -> torch.Tensor:
    """Return [summed loss, correct targets, targets] of one batch, float64."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    labels = inputs.pop("labels")
    sparse = not causal and getattr(model.config, "sparse_prediction", False)
    with torch.inference_mode():
        logits = model(**inputs, **({"labels": labels} if sparse else {})).logits  # sparse: of the targets only [N, V]
        if causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        chosen = labels != IGNORED
        logits, labels = (logits if sparse else logits[chosen]).float(), labels[chosen]
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
        correct = (logits.argmax(-1) == labels).double().sum()
        return torch.stack([loss, correct, chosen.double().sum()])
