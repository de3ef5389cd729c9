"""A checkpoint of any layout of processes, loaded by any other."""

from itertools import product

import pytest

from tests.parallel.resharding import LAYOUTS, run_pairs

pytestmark = pytest.mark.dist

FEW = ("one", "dp2", "tp2", "pp2-v", "ep2")


def _check(found, names):
    assert set(found) == {f"{start} > {name}" for start, name in product(names, repeat=2)}
    for pair, report in found.items():
        assert report["loss"] < 1e-12, pair
        assert report["weights"] < 1e-12, pair
        assert report["differing"] == 0, pair


def test_a_run_goes_on_in_any_layout_of_up_to_two_processes(tmp_path):
    _check(run_pairs(FEW, tmp_path), FEW)


@pytest.mark.slow
def test_a_run_goes_on_in_any_of_eight_layouts(tmp_path):
    found = run_pairs(tuple(LAYOUTS), tmp_path)
    print(f"{len(found)} pairs, worst loss {max(pair['loss'] for pair in found.values()):.2g}")
    _check(found, tuple(LAYOUTS))
