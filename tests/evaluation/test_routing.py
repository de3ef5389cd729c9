"""Routing statistics on distributions whose values are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sortyard.evaluation import routing as statistics
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import ExpertOptions
from sortyard.ops.segments import make_segments


class OneLayer(nn.Module):
    """The least that has expert loads."""

    def __init__(self) -> None:
        super().__init__()
        options = ExpertOptions(moe_intermediate_size=12)
        self.layer = ExpertLayer(options, hidden_size=6, hidden_act="gelu", gated=False, bias=False)

    def forward(self, hidden: torch.Tensor, *, output_statistics: bool = True) -> SimpleNamespace:
        _, record = self.layer(hidden, segments=make_segments(*hidden.shape[:2], device="cpu"))
        return SimpleNamespace(expert_loads=record.loads[None])


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([5, 5, 5, 5], {"utilisation": 1, "inverse_simpson": 1, "share_used": 1, "variation": 0, "max_violation": 0}),
        (
            [8, 0, 0, 0],
            {
                "utilisation": 0.25,
                "inverse_simpson": 0.25,
                "share_used": 0.25,
                "variation": 3**0.5,
                "max_violation": 3,
            },
        ),
        (
            [4, 4, 0, 0],
            {"utilisation": 0.5, "inverse_simpson": 0.5, "share_used": 0.5, "variation": 1, "max_violation": 1},
        ),
    ],
    ids=["even", "one expert", "two experts"],
)
def test_known_distributions(loads, expected):
    for name, value in expected.items():
        assert getattr(statistics, name)(loads) == pytest.approx(value)


def test_inverse_simpson_and_variation_agree():
    loads = np.random.default_rng(0).integers(0, 100, size=(5, 16))
    np.testing.assert_allclose(
        statistics.inverse_simpson(loads), 1 / (1 + statistics.variation(loads) ** 2), rtol=1e-12
    )


def test_report_headline_is_the_worst_layer():
    report = statistics.routing_report([[5, 5, 5, 5], [10, 10, 0, 0]], num_experts_per_tok=2)
    assert report.headline == pytest.approx(0.5)
    assert report.dead_experts == (0, 2)
    assert report.num_tokens == 10
    assert report.to_dict()["headline"] == report.headline


@pytest.mark.parametrize("loads", [[1, 2], [[0, 0]], [[-1, 2]], [[float("nan"), 1]], np.zeros((0, 4))])
def test_tables_without_loads_are_refused(loads):
    with pytest.raises(ValueError, match="loads"):
        statistics.routing_report(loads, num_experts_per_tok=1)


@pytest.mark.parametrize(
    ("loads", "bits"),
    [([[5, 5], [5, 5]], 0), ([[7, 0], [0, 7]], 1), ([[1, 3], [2, 6]], 0)],
    ids=["same", "apart", "scaled"],
)
def test_mutual_information(loads, bits):
    assert statistics.mutual_information(loads) == pytest.approx(bits, abs=1e-12)


def test_redundancy_of_copies_opposites_and_strangers():
    x = torch.randn(1, 20, 5)
    assert statistics.redundancy(x.expand(4, -1, -1)) == pytest.approx(1)
    assert statistics.redundancy(torch.cat([x, -x])) == pytest.approx(-1)
    assert statistics.redundancy(torch.eye(4)[:, None]) == pytest.approx(0)
    outputs = torch.randn(3, 7, 5)
    pairs = [
        nn.functional.cosine_similarity(outputs[i], outputs[j], dim=-1).mean() for i, j in [(0, 1), (0, 2), (1, 2)]
    ]
    assert statistics.redundancy(outputs) == pytest.approx(float(sum(pairs)) / 3, abs=1e-6)
    with pytest.raises(ValueError, match="two experts"):
        statistics.redundancy(torch.randn(1, 3, 4))


def test_collected_loads_add_up_and_the_mode_returns():
    torch.manual_seed(0)
    model = OneLayer().train()
    batches = [{"hidden": torch.randn(2, length, 6)} for length in (3, 8)]
    loads = statistics.collect_loads(model, batches)
    assert loads.shape == (1, 8)
    assert loads.sum() == 2 * 2 * (3 + 8)
    assert model.training


def test_collecting_from_nothing_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        statistics.collect_loads(OneLayer(), [])
    dense = nn.Identity()
    dense.forward = lambda **_: SimpleNamespace(expert_loads=None)
    with pytest.raises(ValueError, match="no expert layers"):
        statistics.collect_loads(dense, [{}])


def test_collected_redundancy_is_one_for_copied_experts():
    torch.manual_seed(0)
    model = OneLayer()
    batch = {"hidden": torch.randn(2, 9, 6)}
    assert abs(statistics.collect_redundancy(model, batch)[0]) < 0.9
    with torch.no_grad():
        for parameter in (model.layer.up_proj, model.layer.down_proj):
            parameter.copy_(parameter[:1].expand_as(parameter))
    assert statistics.collect_redundancy(model, batch, num_tokens=5) == (pytest.approx(1),)
    assert not model.layer._forward_pre_hooks
