"""Axes with names from outside."""

import pytest

from sortyard.reports.figures import axis_names, confusion_figure
from sortyard.reports.routing_figures import use_figure
from tests.reports.test_routing_figures import record

ALIKE = ["customer complaint, first class", "customer complaint, second class", "customer compl…", "short <b>"]


@pytest.mark.parametrize("limit", [14, 16])
def test_shortened_names_stay_apart(limit: int) -> None:
    short = axis_names(ALIKE, limit=limit)
    assert len(set(short)) == len(ALIKE)
    assert all(len(name) <= limit for name in short[:3])
    assert short[0].startswith("customer")
    assert short[3] == "short &lt;b&gt;"


def test_many_names_that_begin_alike_are_numbered() -> None:
    names = [f"the same beginning of all of them, {number}" for number in range(12)]
    short = axis_names(names, limit=14)
    assert (short[0], short[1], short[11]) == ("the same begi…", "the same be… 2", "the same b… 12")
    assert len(set(short)) == 12


def test_a_confusion_matrix_has_a_row_and_a_column_for_every_class() -> None:
    figure = confusion_figure([[2, 1, 0, 0]] * 4, names=ALIKE, id="confusion")
    assert len(set(figure.data[0]["x"])) == len(set(figure.data[0]["y"])) == 4


def test_a_heat_map_has_a_row_for_every_text() -> None:
    found = record(domains=3)
    for number, domain in enumerate(found["domains"]):
        name = f"reviews of the year {number}"
        for layer in found["layers"]:
            layer["domain_loads"][name] = layer["domain_loads"].pop(domain["name"])
        domain["name"] = name
    figure = use_figure(found, id="use")
    assert figure is not None
    assert len(set(figure.data[0]["y"])) == 3
