"""The value that holds every statistic, from counts made by hand."""

import json
from dataclasses import replace

import pytest
import torch

from sortyard.evaluation.routing_collection import RoutingCounts
from sortyard.evaluation.routing_statistics import RoutingStatistics, Saturation, routing_statistics


def counts(*domains: list[list[int]]) -> RoutingCounts:
    """Counts of one expert a token, [layer][expert] for each domain; every copy is of piece 0."""
    loads = torch.tensor(domains)
    whole = loads.sum(0)
    pieces = tuple(torch.nn.functional.pad(layer[:, None], (0, 2)).int() for layer in whole)
    return RoutingCounts(
        num_experts_per_tok=1,
        domains=tuple(f"domain {i}" for i in range(len(domains))),
        tokens=tuple(loads[:, 0].sum(-1).tolist()),
        loads=loads,
        pieces=pieces,
        together=tuple(torch.diag(layer) for layer in whole),
        redundancy=(0.25,) * loads.shape[1],
    )


def two_domains() -> RoutingStatistics:
    return routing_statistics(counts([[8, 0, 0, 0], [2, 2, 2, 2]], [[0, 8, 0, 0], [2, 2, 2, 2]]))


def test_layers_are_summed_over_domains() -> None:
    found = two_domains()
    apart, even = found.layers
    assert (apart.loads, even.loads) == ((8, 8, 0, 0), (4, 4, 4, 4))
    assert (apart.utilisation, even.utilisation) == (pytest.approx(0.5), pytest.approx(1))
    assert apart.domain_utilisation == (pytest.approx(0.25), pytest.approx(0.25))
    assert (apart.specialisation, even.specialisation) == (pytest.approx(1), pytest.approx(0))
    assert (apart.dead_experts, even.dead_experts, apart.variation, apart.max_violation) == (2, 0, 1, 1)
    assert (apart.inverse_simpson, apart.share_used, apart.redundancy) == (pytest.approx(0.5), 0.5, 0.25)


def test_the_headline_is_the_least_even_layer() -> None:
    found = two_domains()
    assert (found.headline, found.headline_layer) == (pytest.approx(0.5), 0)
    assert (found.num_experts, found.num_tokens, found.dead_experts) == (4, 16, 2)


def test_one_domain_says_nothing_about_specialisation() -> None:
    found = routing_statistics(counts([[1, 2], [3, 0]]))
    assert [layer.specialisation for layer in found.layers] == [None, None]


def test_everything_is_json() -> None:
    found = replace(two_domains(), saturation=Saturation((5, 10), ((0.5, 0.25), (1.0, 1.0)), num_tokens=7))
    record = json.loads(json.dumps(found.to_dict(token_name="abc".__getitem__), allow_nan=False))
    assert record["headline"] == found.headline
    assert record["domains"] == [{"name": "domain 0", "tokens": 8}, {"name": "domain 1", "tokens": 8}]
    assert record["domain_entropy"] == pytest.approx(1)
    assert record["layers"][0]["domain_loads"] == {"domain 0": [8, 0, 0, 0], "domain 1": [0, 8, 0, 0]}
    assert record["saturation"]["checkpoints"][0] == {"step": 5, "layers": [0.5, 0.25]}
    assert two_domains().to_dict(token_name=str)["saturation"] is None


def test_top_tokens_and_pairs_carry_their_names() -> None:
    base = counts([[3, 3]])
    pieces = (torch.tensor([[3, 0, 0], [0, 2, 1]], dtype=torch.int32),)
    shared = (torch.tensor([[3, 2], [2, 3]]),)
    layer = routing_statistics(replace(base, pieces=pieces, together=shared)).to_dict(token_name="abc".__getitem__)
    layer = layer["layers"][0]
    assert [[(one["token"], one["copies"]) for one in expert] for expert in layer["top_tokens"]] == [
        [("a", 3)], [("b", 2), ("c", 1)]
    ]  # fmt: skip
    assert layer["co_activation"][0] == {"expert": 0, "partner": 1, "share": pytest.approx(2 / 3), "tokens": 2}
