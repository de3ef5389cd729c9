from types import SimpleNamespace

import pytest
import torch

from sortyard.objectives.causal_lm import CausalLMObjective
from sortyard.objectives.classification import ClassificationObjective, LogitsObjective
from sortyard.objectives.masked_lm import MaskedLMObjective
from tests.training.tiny import TinyModel, TinyOutput, TinySource

ROWS = torch.tensor([[7, -100, 3], [-100, 2, -100]])


@pytest.mark.parametrize(
    ("objective", "labels", "count"),
    [
        (MaskedLMObjective(), ROWS, 3),
        (CausalLMObjective(), ROWS, 2),
        (ClassificationObjective(), torch.tensor([1, -100, 0]), 2),
        (ClassificationObjective(), torch.tensor([1.0, -100.0, 0.5]), 3),
        (ClassificationObjective(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), 6),
    ],
    ids=["masked", "causal: the first position predicts nothing", "classes", "real numbers", "several a sample"],
)
def test_counts_targets(objective, labels, count):
    assert objective.count_targets({"labels": labels}) == count


@pytest.mark.parametrize("objective", [MaskedLMObjective(), CausalLMObjective(), ClassificationObjective()])
def test_passes_on_what_the_model_returns(objective):
    batch = TinySource().micro_batch(0, 0)
    loss = objective.compute(TinyModel(dropout=0.0), batch, num_targets=10)
    assert loss.total.requires_grad
    assert not loss.task.requires_grad
    torch.testing.assert_close(loss.total.detach(), loss.task + loss.balance)
    assert loss.expert_loads.sum() == batch["input_ids"].numel()
    assert loss.sparsity == 0.5


def test_model_without_experts_has_no_balance():
    class Plain(torch.nn.Module):
        def forward(self, **batch):
            loss = torch.ones(()) / batch["num_items_in_batch"]
            return TinyOutput(loss, loss, None, None, None)

    loss = MaskedLMObjective().compute(Plain(), {}, num_targets=4)
    assert (loss.balance, loss.expert_loads, loss.sparsity) == (None, None, 0.0)
    assert loss.total == 0.25


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label_classification", torch.tensor([1, -100, 0])),
        ("regression", torch.tensor([1.0, 0.5, 2.0])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])),
    ],
)
def test_micro_batches_of_a_foreign_model_add_up_to_the_steps_mean(kind, labels):
    class Foreign(torch.nn.Linear):
        config = SimpleNamespace(problem_type=kind)

        def forward(self, input_ids):
            return SimpleNamespace(logits=super().forward(input_ids))

    model, rows = Foreign(4, 1 if kind == "regression" else 2), torch.randn(3, 4)
    objective = LogitsObjective()
    count = objective.count_targets({"labels": labels})
    parts = [
        objective.compute(model, {"input_ids": rows[i : i + 1], "labels": labels[i : i + 1]}, num_targets=count)
        for i in range(3)
    ]
    logits = model(rows).logits
    whole = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "regression": lambda found, wanted: torch.nn.functional.mse_loss(found.flatten(), wanted),
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
    }[kind]
    torch.testing.assert_close(sum(part.total for part in parts), whole(logits, labels))
