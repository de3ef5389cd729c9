"""Results on disk: taken up again by the same command on the same machine, refused otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.studies.bench.results import (
    NOT_INSTALLED,
    BenchResult,
    new_result,
    result_folder,
    resume_result,
    save_result,
)


@pytest.fixture
def begun() -> BenchResult:
    return new_result(
        "speed",
        what="seconds",
        command="sortyard bench speed",
        seed=0,
        threads=1,
        device="cpu",
        settings={"heads": 8, "sizes": (1, 2)},
        packages=["numpy", "no-such-package"],
    )


def test_a_result_says_where_it_was_measured(begun: BenchResult) -> None:
    assert begun.versions["no-such-package"] == NOT_INSTALLED
    assert begun.versions["numpy"] != NOT_INSTALLED
    assert begun.machine["device"] == "cpu"
    assert len(begun.code) == 16


def test_cells_are_taken_over(begun: BenchResult, tmp_path: Path) -> None:
    save_result(replace(begun, cells={"a": {"seconds": [1.0]}}), folder=tmp_path)
    assert resume_result(begun, folder=tmp_path, fresh=True).cells == {}
    assert resume_result(begun, folder=tmp_path, fresh=False).cells == {"a": {"seconds": [1.0]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"heads": 4}}, "settings"),
        ({"code": "0" * 16}, "code"),
        ({"threads": 2, "seed": 5}, "seed and threads"),
        ({"versions": {"torch": "1.0"}}, "versions"),
    ],
    ids=["settings", "code", "seed and threads", "versions"],
)
def test_another_result_is_refused(change: dict, words: str, begun: BenchResult, tmp_path: Path) -> None:
    path = save_result(replace(begun, **change, cells={"a": {}}), folder=tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"other {words}; --fresh replaces it"):
        resume_result(begun, folder=tmp_path, fresh=False)
    assert path.read_bytes() == before


def test_a_file_that_is_no_result_is_refused(begun: BenchResult, tmp_path: Path) -> None:
    for text in ("{", json.dumps({"name": "speed"}), "[1]"):
        (tmp_path / "speed.json").write_text(text)
        with pytest.raises(InputError, match="is no result of this benchmark"):
            resume_result(begun, folder=tmp_path, fresh=False)


def test_the_folder_is_the_benchmarks_own_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert result_folder(None) == Path()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert result_folder(None) == Path("benchmarks/results")
    assert result_folder(tmp_path / "new" / "one").is_dir()
