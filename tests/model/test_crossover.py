"""Dense or bucket attention by length: the table, and what overrides it."""

import pytest
import torch
import torch.nn.functional as F

from sortyard.model.attention.bucket import BucketCore
from sortyard.model.attention.crossover import dense_up_to
from sortyard.model.options import ModelOptions
from sortyard.ops import make_segments


def attend(options: ModelOptions, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = torch.randn(3, 1, 2, length, 8, generator=torch.Generator().manual_seed(0)).unbind()
    core = BucketCore(options, causal=False)
    out = core(q, k, v, segments=make_segments(1, length, device="cpu"), dropout_p=0.0)
    return out, F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("selection", ["tree", "rounds"])
def test_the_table_decides_by_length(selection: str) -> None:
    options = ModelOptions(selection=selection)
    border = dense_up_to(selection, device="cpu", has_own_budget=False)
    assert torch.equal(*attend(options, border))
    assert not torch.equal(*attend(options, border + 1))


def test_a_number_overrides_the_table() -> None:
    assert torch.equal(*attend(ModelOptions(dense_up_to=600), 600))
    assert not torch.equal(*attend(ModelOptions(dense_up_to=0, num_buckets=32), 100))


def test_an_explicit_budget_is_obeyed_at_short_lengths() -> None:
    assert not torch.equal(*attend(ModelOptions(target_sparsity=0.5), 200))
    assert ModelOptions(target_sparsity=0.5).to_spec().dense_up_to == 64


def test_devices_have_their_own_border() -> None:
    options = ModelOptions()
    assert options.to_spec(device="cuda").dense_up_to > options.to_spec(device="cpu").dense_up_to
    assert BucketCore(options, causal=False).spec_on(torch.device("cuda")) == options.to_spec(device="cuda")
