"""`sortyard compare` on the command line."""

from collections.abc import Callable
from pathlib import Path

from tests.reports.conftest import add_evaluation, fill


def test_table_json_and_page(sortyard: Callable, tmp_path: Path) -> None:
    for name, right in (("one", 150), ("two", 200)):
        add_evaluation(fill(tmp_path / name, name=name, steps=300, start=1.4, end=0.6), right=right)
    ended = sortyard("compare", "one", "two", "--out", "compare.html")
    assert ended.status == 0, ended.err
    for part in ("Recipe keys that differ", "two - one", "+20.0", "two is better than one", "compare.html"):
        assert part in ended.out
    found = sortyard("compare", "one", "two", "--json").json
    assert [run["run"] for run in found["runs"]] == ["one", "two"]
    assert found["differing"] == {"name": {"one": "one", "two": "two"}}
    assert found["paired"][0]["num_examples"] == 250
    assert found["page"] is None


def test_mistakes(sortyard: Callable, tmp_path: Path) -> None:
    fill(tmp_path / "one", name="one", steps=20, start=1.4, end=0.6)
    fill(tmp_path / "two", name="two", steps=20, start=1.4, end=0.6)
    assert "two runs or more, got 1" in sortyard("compare", "one").err
    ended = sortyard("compare", "one", "two", "--out", "missing/compare.html")
    assert (ended.status, "must be a file in a folder that exists" in ended.err) == (2, True)
