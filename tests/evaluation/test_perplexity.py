"""Loss, perplexity and accuracy against a plain computation."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sortyard.evaluation.perplexity import evaluate_language_model


class Table(nn.Module):
    """Logits that depend on the token alone."""

    device = torch.device("cpu")
    config = SimpleNamespace()

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids])


def batches() -> list[dict[str, Tensor]]:
    first = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 4, 5]])}
    second = {"input_ids": torch.tensor([[6, 0, 0], [1, 1, 1]]), "labels": torch.tensor([[2, -100, -100]] * 2)}
    return [first, second]


def test_every_target_counts_the_same() -> None:
    model = Table()
    inputs, labels = torch.tensor([2, 3, 6, 1]), torch.tensor([4, 5, 2, 2])
    expected = F.cross_entropy(model.logits[inputs], labels).item()
    score = evaluate_language_model(model, batches=batches())
    assert score.loss == pytest.approx(expected)
    assert score.perplexity == pytest.approx(math.exp(expected))
    assert score.accuracy == (model.logits[inputs].argmax(-1) == labels).float().mean().item()
    assert score.num_targets == 4
    assert model.training


def test_causal_labels_are_shifted() -> None:
    model = Table()
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}
    expected = F.cross_entropy(model.logits[torch.tensor([1, 2])], torch.tensor([2, 3])).item()
    assert evaluate_language_model(model, batches=[batch], causal=True).loss == pytest.approx(expected)


def test_sparse_prediction_gives_the_same(tiny_masked_lm: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (2, 24), generator=generator)
    labels = torch.where(torch.rand(2, 24, generator=generator) < 0.3, ids, -100)
    given = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]
    sparse = evaluate_language_model(tiny_masked_lm, batches=given)
    tiny_masked_lm.config.sparse_prediction = False
    full = evaluate_language_model(tiny_masked_lm, batches=given)
    assert sparse.num_targets == full.num_targets
    assert sparse.loss == pytest.approx(full.loss, rel=1e-5)


@pytest.mark.parametrize("given", [[], [{"input_ids": torch.ones(1, 2).long(), "labels": torch.full((1, 2), -100)}]])
def test_no_targets(given: list[dict[str, Tensor]]) -> None:
    with pytest.raises(ValueError, match="no targets"):
        evaluate_language_model(Table(), batches=given)
