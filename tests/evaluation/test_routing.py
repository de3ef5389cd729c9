"""Measures of load on distributions whose values are known."""

import numpy as np
import pytest

from sortyard.evaluation import routing


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
def test_known_distributions(loads: list[int], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert getattr(routing, name)(loads) == pytest.approx(value)


def test_utilisation_of_a_table_is_that_of_its_rows() -> None:
    table = np.random.default_rng(0).integers(1, 100, size=(2, 5, 16))
    rows = [routing.utilisation(row) for row in table.reshape(-1, 16)]
    np.testing.assert_allclose(routing.utilisation(table).reshape(-1), rows)


def test_inverse_simpson_and_variation_agree() -> None:
    loads = np.random.default_rng(0).integers(0, 100, size=(5, 16))
    np.testing.assert_allclose(routing.inverse_simpson(loads), 1 / (1 + routing.variation(loads) ** 2), rtol=1e-12)


@pytest.mark.parametrize("loads", [[0, 0], [[1, 2], [0, 0]], [-1, 2], [float("nan"), 1]])
def test_loads_that_are_no_counts_are_refused(loads: list[float]) -> None:
    with pytest.raises(ValueError, match="loads must be counts"):
        routing.utilisation(loads)


@pytest.mark.parametrize(
    ("loads", "bits"),
    [
        ([[5, 5], [5, 5]], 0),
        ([[7, 0], [0, 7]], 1),
        ([[1, 3], [2, 6]], 0),
        ([[6, 0, 0], [0, 1, 1]], 2 - 0.75 * np.log2(3)),  # the smaller domain weighs a quarter
        ([[3, 1], [1, 3]], 1 - (2 - 0.75 * np.log2(3))),  # 1 less the entropy of (3/4, 1/4)
    ],
    ids=["same", "apart", "scaled", "apart and uneven", "three to one"],
)
def test_mutual_information(loads: list[list[int]], bits: float) -> None:
    assert routing.mutual_information(loads) == pytest.approx(bits, abs=1e-12)


def test_mutual_information_is_the_domains_entropy_where_they_share_no_expert() -> None:
    loads = [[2, 1, 0, 0], [0, 0, 5, 0], [0, 0, 0, 4]]
    assert routing.mutual_information(loads) == pytest.approx(routing.entropy_bits([3, 5, 4]))
    assert routing.entropy_bits([1, 1, 1, 1]) == pytest.approx(2)
    assert routing.entropy_bits([3, 0]) == 0
