"""`study sparsity`: a small real run through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.studies.sparsity import pool, study
from tests.studies.sparsity_model import made_up, tiny_model

SMALL = (
    "study", "sparsity", "model", "--data", "novels.jsonl", "--lengths", "64", "--sparsities", "0,0.5,80%",
    "--selections", "tree,local", "--adapt-steps", "1", "--minutes", "0", "--json",
)  # fmt: skip
LABELLED = ("--task-data", "novels.jsonl", "--label-column", "author", "--task-steps", "1")


@pytest.fixture(autouse=True)
def few_tokens_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "HELD_OUT_TOKENS", 256)


@pytest.fixture(autouse=True)
def material(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"text": made_up(200, seed=seed), "author": "ab"[seed % 2]} for seed in range(6)]
    (tmp_path / "novels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_cell_is_measured_and_written_down(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard(*SMALL, *LABELLED, "--out", "there")
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert len(found["cells"]) == 4 + 3 * 5
    panels = [(panel["measure"], panel["length"]) for panel in found["summary"]["panels"]]
    assert panels == [("as-is", 64), ("adapted", 64), ("task", 64)]
    stored = json.loads((tmp_path / "there" / "sparsity.json").read_text())
    assert stored == {key: value for key, value in found.items() if key != "files"}
    page = (tmp_path / "there" / "sparsity.html").read_text()
    for words in ("The knees", "How sparse can attention be?", "Fall of the accuracy", "best sparsity is 55 to 60"):
        assert words in page
    assert "cells to measure, about" in ended.err


def test_an_interrupted_run_goes_on_where_it_stopped(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = pool.measure_cell

    def measure(cell, setting, bench):
        measured.append(cell.key)
        if len(measured) == 7:
            raise KeyboardInterrupt
        return real(cell, setting, bench)

    monkeypatch.setattr(pool, "measure_cell", measure)
    assert sortyard(*SMALL).status == 130
    stored = json.loads((tmp_path / "sparsity.json").read_text())
    assert stored["complete"] is False
    assert list(stored["cells"]) == measured[:6]
    ended = sortyard(*SMALL)
    assert ended.status == 0, ended.err
    assert ended.json["complete"] is True
    assert len(measured) == 7 + 14 - 6  # nothing twice but what was interrupted


def test_time_that_runs_out_leaves_cells_out_and_says_so(sortyard: Callable) -> None:
    words = [("0.0001" if before == "--minutes" else word) for before, word in zip(("", *SMALL), SMALL, strict=False)]
    ended = sortyard(*words)
    assert ended.status == 0, ended.err
    assert ended.json["complete"] is False
    assert all(cell["measure"] == "setting" for cell in ended.json["cells"].values())
    assert "10 cells are left out for lack of time" in ended.err


@pytest.mark.slow
def test_two_processes_find_the_same(sortyard: Callable) -> None:
    alone, beside = (sortyard(*SMALL, *LABELLED, "--jobs", jobs, "--out", jobs).json["summary"] for jobs in ("1", "2"))
    assert alone == beside


def test_other_text_is_never_mixed_in(sortyard: Callable, tmp_path: Path) -> None:
    assert sortyard(*SMALL).status == 0
    rows = [{"text": made_up(200, seed=seed)} for seed in range(20, 26)]
    (tmp_path / "novels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = sortyard(*SMALL)
    assert ended.status == 2
    assert "was measured on other data than is given now" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model",), "--data: is missing"),
        (("nowhere/at/all", "--data", "novels.jsonl"), "nowhere/at/all: there is no such folder"),
        (("model", "--data", "nothing.jsonl", "--lengths", "64"), "--data nothing.jsonl"),
        (("model", "--data", "novels.jsonl", "--lengths", "8"), "--lengths 8: expected at least 16 tokens"),
        (("model", "--data", "novels.jsonl", "--lengths", "512"), "the model reads at most 128 tokens"),
        (("model", "--data", "novels.jsonl", "--sparsities", "0.5,1"), "'1' is no share of at least 0 and below 1"),
        (("model", "--data", "novels.jsonl", "--sparsities", "0"), "leaves nothing to compare"),
        (("model", "--data", "novels.jsonl", "--selections", "treee"), "did you mean"),
        (
            ("model", "--data", "novels.jsonl", "--lengths", "64", "--task-data", "novels.jsonl"),
            "there is no column 'label'",
        ),
    ],
    ids=["no-data", "no-model", "no-text", "short", "long", "all", "none", "selection", "column"],
)
def test_bad_input_is_told(words: tuple[str, ...], message: str, sortyard: Callable) -> None:
    ended = sortyard("study", "sparsity", *words)
    assert ended.status == 2
    assert message in ended.err


def test_what_a_gpu_cannot_do_is_refused(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = sortyard(*SMALL, "--device", "gpu")
    assert ended.status == 2
    assert "expected cpu, cuda or cuda:0" in ended.err
    monkeypatch.setattr("sortyard.cli.study_sparsity.check_device", lambda _: None)
    ended = sortyard(*SMALL, "--device", "cuda", "--selections", "tree,positions")
    assert ended.status == 2
    assert "positions is made on the CPU only" in ended.err
