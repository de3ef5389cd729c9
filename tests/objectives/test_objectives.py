import pytest
import torch

from sortyard.objectives.causal_lm import CausalLMObjective
from sortyard.objectives.classification import ClassificationObjective
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
    ],
    ids=["masked", "causal: the first position predicts nothing", "classes", "real numbers"],
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
