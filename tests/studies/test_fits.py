"""Slopes and crossovers on made-up timings, whose answers are known."""

import pytest

from sortyard.studies.bench.attention import summarise
from sortyard.studies.bench.attention_page import _slopes
from sortyard.studies.bench.fits import crossover, log_log_slope

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)


@pytest.mark.parametrize("exponent", [1.0, 1.15, 2.0])
def test_the_slope_of_a_power_is_its_exponent(exponent: float) -> None:
    slope = log_log_slope({n: 3e-9 * n**exponent for n in LENGTHS}, first=2048, last=131_072)
    assert slope is not None
    assert slope.exponent == pytest.approx(exponent)
    assert (slope.first, slope.last, slope.points) == (2048, 16_384, 4)


def test_one_point_has_no_slope() -> None:
    assert log_log_slope({512: 1.0, 4096: 2.0}, first=4096, last=8192) is None


def test_the_crossover_lies_on_the_line_between_logarithms() -> None:
    # dense n^2 against n^1 that are equal at 1,500: the ratio is n / 1,500
    found = crossover({n: n / 1500 for n in LENGTHS})
    assert found is not None
    assert (found.relation, found.length) == ("at", pytest.approx(1500))
    assert found.text() == "1,500"


def test_crossovers_outside_the_measured_lengths() -> None:
    below, above = crossover({512: 1.2, 1024: 3.0}), crossover({512: 0.2, 1024: 0.9})
    assert below is not None
    assert above is not None
    assert (below.text(), above.text()) == ("< 512", "> 1,024")
    assert crossover({}) is None


def test_the_last_crossing_counts() -> None:
    found = crossover({512: 1.1, 1024: 0.5, 2048: 2.0})
    assert found is not None
    assert found.length == pytest.approx(2048**0.5 * 1024**0.5)


def test_a_summary_holds_slopes_and_the_crossover() -> None:
    cells = {}
    for n in LENGTHS:
        seconds = {"dense": 1e-9 * n**2, "tree": 2e-6 * n}
        sides = {
            name: {
                "median_seconds": value,
                "peak_extra_bytes": 100 * n if name == "dense" else None,
                "ratio_to_dense": {"median": seconds["dense"] / value},
            }
            for name, value in seconds.items()
        }
        cells[f"fp32/forward/{n}"] = {"length": n, "dtype": "fp32", "direction": "forward", "sides": sides}
    line = summarise(cells)["fp32/forward"]
    assert line["dense"]["time_slope"]["exponent"] == pytest.approx(2.0)
    assert line["dense"]["time_slope"]["first"] == 4096
    assert line["dense"]["memory_slope"]["exponent"] == pytest.approx(1.0)
    assert line["dense"]["crossover_with_dense"] is None
    assert line["tree"]["memory_slope"] is None
    assert line["tree"]["crossover_with_dense"] == {"relation": "at", "length": pytest.approx(2000)}


def test_a_slope_over_another_range_than_the_columns_says_so() -> None:
    def fit(last: int) -> dict:
        return {"time_slope": {"exponent": 1.234, "first": 4096, "last": last, "points": 3}}

    head, write = _slopes({"ours": fit(131_072), "dense": fit(16_384), "none": {"time_slope": None}}, "time_slope")
    assert (head, write("ours"), write("dense"), write("none")) == ("slope 4k..128k", "1.23", "1.23 (4k..16k)", "-")
