"""The course of a study: what was measured stays, what is missing is measured, and an interruption loses nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sortyard.studies.bench import study
from sortyard.studies.bench.results import new_result
from sortyard.studies.bench.study import Study, run_study


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any load."""
    monkeypatch.setattr(study.os, "getloadavg", lambda: (0.26, 0.0, 0.0))


def squares(
    items: dict[str, int], *, measure: Callable | None = None, is_current: Callable = lambda *_: True
) -> Study[int]:
    begun = new_result(
        "squares", what="squares", command="sortyard bench squares", seed=0, threads=1, device="cpu", settings={}
    )

    def write_page(result, /, *, folder):
        path = folder / "squares.html"
        path.write_text(json.dumps(result.summary))
        return path

    return Study(
        begun=begun,
        items=items,
        measure=measure or (lambda item, cells, _: {"square": item**2, "before": len(cells)}),
        words=lambda cell: f"{cell['square']}",
        summarise=lambda cells: {"sum": sum(cell["square"] for cell in cells.values())},
        write_page=write_page,
        write_text=lambda result: f"sum {result.summary['sum']}",
        is_current=is_current,
    )


def test_cells_are_measured_in_order_and_shown(tmp_path: Path) -> None:
    said: list[str] = []
    result, text = run_study(squares({"two": 2, "three": 3}), folder=tmp_path, fresh=False, say=said.append)
    assert result.cells == {
        "two": {"square": 4, "before": 0, "machine_load": 0.3},
        "three": {"square": 9, "before": 1, "machine_load": 0.3},
    }
    assert said == ["1/2  two: 4", "2/2  three: 9"]
    assert text == "sum 13"
    stored = json.loads((tmp_path / "squares.json").read_text())
    assert (stored["cells"], stored["summary"], stored["complete"]) == (result.cells, {"sum": 13}, True)
    assert json.loads((tmp_path / "squares.html").read_text()) == {"sum": 13}


def test_what_is_there_and_current_is_not_measured_again(tmp_path: Path) -> None:
    said: list[str] = []
    run_study(squares({"two": 2}), folder=tmp_path, fresh=False, say=said.append)
    run_study(squares({"two": 2, "three": 3}), folder=tmp_path, fresh=False, say=said.append)
    assert said[1:] == ["1/2  two: measured before", "2/2  three: 9"]
    stale = squares({"two": 5, "three": 3}, is_current=lambda item, cell: item**2 == cell["square"])
    result, _ = run_study(stale, folder=tmp_path, fresh=False, say=said.append)
    assert said[3:] == ["1/2  two: 25", "2/2  three: measured before"]
    assert result.summary == {"sum": 34}
    run_study(squares({"two": 2}), folder=tmp_path, fresh=True, say=said.append)
    assert said[5:] == ["1/1  two: 4"]


def test_an_interruption_keeps_the_cells_and_the_page(tmp_path: Path) -> None:
    def measure(item, cells, _):
        if cells:
            raise KeyboardInterrupt
        return {"square": item**2}

    with pytest.raises(KeyboardInterrupt):
        run_study(squares({"two": 2, "three": 3}, measure=measure), folder=tmp_path, fresh=False, say=lambda _: None)
    stored = json.loads((tmp_path / "squares.json").read_text())
    assert (list(stored["cells"]), stored["complete"], stored["summary"]) == (["two"], False, {"sum": 4})
    assert (tmp_path / "squares.html").exists()


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    def fail(*_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run_study(squares({"two": 2}, measure=fail), folder=tmp_path, fresh=False, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_limited_time_is_shared_out_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(study.time, "monotonic", lambda: clock[0])
    given: dict[int, float] = {}

    def measure(item, _, seconds):
        given[item] = seconds
        clock[0] += {1: 4.0, 2: 20.0, 3: 100.0}.get(item, 0.0)
        return {"square": item**2}

    items = {f"cell {number}": number for number in range(1, 6)}
    planned = replace(squares(items, measure=measure), weight=float)
    result, text = run_study(planned, folder=tmp_path, fresh=False, say=lambda _: None, seconds=60.0)
    # 60 x 1 / 15, then what is left x 2 / 14 and x 3 / 12; then the time is over
    assert given == {1: pytest.approx(4.0), 2: pytest.approx(8.0), 3: pytest.approx(9.0)}
    assert (list(result.cells), result.complete) == (["cell 1", "cell 2", "cell 3"], False)
    assert "Not measured: 2 of 5 cells; the same command goes on with them." in text
    result, _ = run_study(planned, folder=tmp_path, fresh=False, say=lambda _: None, seconds=60.0)
    assert (len(result.cells), result.complete) == (5, True)


def test_a_busy_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    monkeypatch.setattr(study.os, "cpu_count", lambda: 8)
    said: list[str] = []
    run_study(squares({"two": 2}), folder=tmp_path, fresh=False, say=said.append)
    assert said[0].startswith("the machine is busy (load 7 on 8 cores)")
