"""The pictures and tables of an evaluated routing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sortyard.evaluation.routing_choices import ExpertPair
from sortyard.evaluation.routing_statistics import LayerRouting, RoutingStatistics, Saturation
from sortyard.evaluation.routing_tokens import TokenLift
from sortyard.reports.report import write_report
from sortyard.reports.routing_figures import layer_table, saturation_figure, token_table, use_figure
from tests.reports.conftest import NASTY
from tests.reports.test_report import outline, text_of

PIECES = ("the", NASTY, "##ing")


def layer(*, loads: tuple[tuple[int, ...], ...], several: bool = True) -> LayerRouting:
    whole = tuple(sum(column) for column in zip(*loads, strict=True))
    tokens = tuple((TokenLift(i % 3, 10 + i, 1.5 + i), TokenLift((i + 1) % 3, 3, 1.1)) for i in range(len(whole)))
    return LayerRouting(
        loads=whole, utilisation=0.91, inverse_simpson=0.8, share_used=1.0, dead_experts=0, variation=0.3,
        max_violation=0.4, redundancy=0.05, specialisation=0.123 if several else None, domain_loads=loads,
        domain_utilisation=(0.8,) * len(loads), pairs=(ExpertPair(0, 1, 0.5, 7),), top_tokens=tokens,
    )  # fmt: skip


def record(*, domains: int = 3, experts: int = 8, layers: int = 4, checkpoints: int = 5) -> dict[str, Any]:
    loads = tuple(tuple(5 + (i * j + i) % 7 for i in range(experts)) for j in range(domains))
    statistics = RoutingStatistics(
        num_experts=experts,
        num_experts_per_tok=2,
        domains=tuple((f"{NASTY} {i}" if i == 1 else f"text {i}", 1000 + i) for i in range(domains)),
        layers=(layer(loads=loads, several=domains > 1),) * layers,
    )
    if checkpoints:
        shares = tuple(((i + 1) / checkpoints,) * layers for i in range(checkpoints))
        steps = tuple(50 * (i + 1) for i in range(checkpoints))
        statistics = replace(statistics, saturation=Saturation(steps, shares, num_tokens=4096))
    values = statistics.to_dict(token_name=PIECES.__getitem__)
    return {**values, "masked": True, "notes": ["only 3,003 tokens were counted"]}


def test_the_heat_map_is_relative_to_an_even_share() -> None:
    found = record()
    figure = use_figure(found, id="use")
    assert figure is not None
    assert len(figure.data) == 4
    row = figure.data[0]["z"][0]
    assert sum(row) / len(row) == pytest.approx(1, abs=1e-3)
    loads = found["layers"][0]["domain_loads"]["text 0"]
    assert row == pytest.approx([8 * load / sum(loads) for load in loads], abs=1e-3)
    assert "<script>" not in json.dumps(figure.spec())
    assert "of at most 1.58" in figure.caption
    assert "Only 3,003 tokens were counted." in figure.caption


def test_the_least_even_layer_is_described() -> None:
    found = record()
    found["layers"][2]["utilisation"], found["headline_layer"] = 0.42, 2
    figure = use_figure(found, id="use")
    assert figure is not None
    assert "42%" in figure.description


def test_one_domain_has_no_column_of_its_own() -> None:
    found = record(domains=1, checkpoints=0)
    assert len(layer_table(found).header) == 6
    assert len(layer_table(record()).header) == 10
    figure = use_figure(found, id="use")
    assert figure is not None
    assert "Bits" not in figure.caption
    assert saturation_figure(found, id="settled") is None
    assert use_figure({}, id="use") is None
    assert saturation_figure({}, id="settled") is None


def test_saturation_is_drawn_beside_chance() -> None:
    figure = saturation_figure(record(), id="settled")
    assert figure is not None
    assert [trace["name"] for trace in figure.data] == [
        "layer 1", "layer 2", "layer 3", "layer 4", "independent choices", "mean"
    ]  # fmt: skip
    assert figure.data[4]["y"] == [0.25, 0.25]
    assert figure.data[5]["y"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert figure.tables[0].rows[0] == ("50", "20.0%", "20.0%", "20.0%", "20.0%")


def test_many_layers_and_experts_are_cut_and_that_is_said() -> None:
    found = record(layers=24, experts=64)
    figure = use_figure(found, id="use")
    assert figure is not None
    assert "16 more layers are not shown" in figure.caption
    table = token_table(found)
    assert len(table.rows) == 48
    assert "48 of 1536 experts" in table.caption
    assert len(json.dumps(figure.spec())) < 60_000


@pytest.mark.parametrize("domains", [1, 3])
def test_a_page_with_it_is_whole_and_escaped(pretrain_run: Path, domains: int) -> None:
    before = write_report(pretrain_run).stat().st_size
    (pretrain_run / "eval").mkdir()
    (pretrain_run / "eval/routing.json").write_text(json.dumps(record(domains=domains, layers=12, experts=64)))
    page = write_report(pretrain_run)
    assert page.stat().st_size < before + 150_000
    assert "<script>alert" not in "".join(outline(page).scripts)
    text = text_of(page)
    for part in ("Pretraining run", "Use of the experts on text 0", "When the routing settled", "##ing x "):
        assert part in text
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for spec in re.findall(r'data-plot="[^"]+">(.*?)</script>', page.read_text()):
        values = json.loads(re.sub(r"theme:[a-z-]+", "#123456", spec))
        graph_objects.Figure(data=values["data"], layout=values["layout"])
