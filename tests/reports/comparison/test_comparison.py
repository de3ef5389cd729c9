"""Runs beside each other: arithmetic, differing keys, warnings, damaged runs, and the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sortyard.errors import InputError
from sortyard.reports.comparison.comparison import compare_runs, differing_keys, short_names
from sortyard.reports.comparison.page import verdict, write_comparison
from sortyard.runs.folder import RunFolder
from tests.reports.conftest import add_evaluation, fill
from tests.reports.test_report import outline, text_of


def alter(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = fill(tmp_path / "one", name="task", steps=300, start=1.4, end=0.6)
    other = fill(tmp_path / "two", name="task", steps=600, start=1.4, end=0.4)
    add_evaluation(one, right=150)
    add_evaluation(other, right=200)
    return one.path, other.path


def test_figures_are_the_records(two: tuple[Path, Path]) -> None:
    first, second = (run.record() for run in compare_runs(two).runs)
    assert (first["run"], second["run"]) == ("one", "two")
    assert (first["steps"], second["steps"]) == (300, 600)
    assert first["tokens"] == 300 * 2048
    assert first["tokens_per_second"] == pytest.approx(300 * 2048 / (300 * 0.21))
    assert first["memory_bytes"] == 1.05e9 + 1e6 * 300
    losses = [row["task_loss"] for row in RunFolder(two[0]).read_metrics("train")]
    assert first["train_loss"] == pytest.approx(sum(losses[-3:]) / 3)  # of 30 records
    held_out = RunFolder(two[1]).read_metrics("eval")
    assert second["held_out_loss"] == held_out[-1]["loss"]
    assert second["best_held_out_loss"] == min(row["loss"] for row in held_out)
    assert first["evaluations"][0]["metrics"]["accuracy"] == 150 / 250


def test_paired_difference(two: tuple[Path, Path]) -> None:
    comparison = compare_runs(two)
    (paired,) = comparison.paired
    assert (paired.first, paired.second, paired.metric) == ("one", "two", "accuracy")
    assert paired.difference.value == pytest.approx(50 / 250)
    assert paired.difference.low > 0.1
    assert "two is better than one in accuracy on custom" in verdict(comparison)


def test_equal_runs_cannot_be_told_apart(two: tuple[Path, Path]) -> None:
    add_evaluation_again(two[1], right=150)
    assert "no run can be told from the first" in verdict(compare_runs(two))


def add_evaluation_again(path: Path, *, right: int) -> None:
    run = RunFolder(path)
    for file in run.eval.iterdir():
        file.unlink()
    run.eval.rmdir()
    add_evaluation(run, right=right)


def test_other_examples_are_not_paired(two: tuple[Path, Path]) -> None:
    file = two[1] / "eval" / "custom-predictions.jsonl"
    file.write_text(file.read_text().replace("number 7.", "number seven."))
    comparison = compare_runs(two)
    assert not comparison.paired
    assert any("not scored on the same examples of custom" in warning for warning in comparison.warnings)


def test_differing_keys_only() -> None:
    recipes = [
        {"seed": 1, "model": {"num_experts": 8, "hidden_size": 32}, "extra": {}},
        {"seed": 1, "model": {"num_experts": 16, "hidden_size": 32, "beam": None}},
    ]
    assert differing_keys(recipes) == {
        "model.num_experts": ("8", "16"),
        "extra": ("{}", "-"),
        "model.beam": ("-", "null"),
    }


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([Path("/a/runs/x"), Path("/a/runs/y")]) == ["x", "y"]
    assert short_names([Path("/a/one/finetune"), Path("/a/two/finetune")]) == ["one/finetune", "two/finetune"]


def test_warnings_say_what_is_not_comparable(two: tuple[Path, Path]) -> None:
    alter(two[0] / "env.json", data_fingerprint="aaaa", seed=1)
    alter(two[1] / "env.json", data_fingerprint="bbbb", seed=2, machine={"cpu": "Another", "cores": 8})
    for path, word in zip(two, ("x", "y"), strict=True):
        (path / "model").mkdir()
        (path / "model" / "tokenizer.json").write_text(word)
    events = two[1] / "events.jsonl"
    events.write_text("".join(line for line in events.read_text().splitlines(True) if "finish" not in line))
    text = "\n".join(compare_runs(two).warnings)
    for part in (
        "not the same data, so", "one: aaaa, two: bbbb", "not the same tokenizer, so a loss per token",
        "not the same seed, so", "not the same machine, so", "two has not finished; it stands at step 600",
    ):  # fmt: skip
        assert part in text


def test_like_runs_have_no_warnings(two: tuple[Path, Path]) -> None:
    assert compare_runs(two).warnings == ()


def test_seed_0_is_a_seed(two: tuple[Path, Path]) -> None:
    alter(two[0] / "env.json", seed=0)
    assert "not the same seed, so part of a difference is the seed's (one: 0, two: 7)" in compare_runs(two).warnings


def test_a_run_that_goes_on_after_its_end_has_not_finished(two: tuple[Path, Path]) -> None:
    run = RunFolder(two[1])
    run.append_event("resume", step=600)
    run.append_event("checkpoint", step=700)
    run.sync()
    assert compare_runs(two).warnings == ("two has not finished; it stands at step 600",)
    run.append_event("finish", step=700)
    run.sync()
    assert compare_runs(two).warnings == ()


def test_damaged_run_is_named(two: tuple[Path, Path]) -> None:
    file = two[1] / "metrics.jsonl"
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(InputError, match=re.escape(f"{file}, line 1")):
        compare_runs(two)


@pytest.mark.parametrize(
    ("folders", "words"),
    [((), "two runs or more, got 0"), (("one",), "got 1"), (("one", "one/../one"), "given twice"),
     (("one", "three"), "there is no such folder"), (("one", "one/eval"), "is no run's folder")],
    ids=["none", "one", "twice", "missing", "no run"],
)  # fmt: skip
def test_bad_folders(two: tuple[Path, Path], folders: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_runs([two[0].parent / name for name in folders])


def test_page_is_well_formed_small_and_offline(two: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_comparison(compare_runs(two), out=tmp_path / "compare.html")
    page, text = outline(path), text_of(path)
    assert path.stat().st_size < 6_000_000
    assert all(load.startswith("#") for load in page.loads)
    assert set(page.references) <= set(page.ids)
    for part in ("2 runs compared", "+20.0", "60.0 % (65.3 to 76.4)", "Loss by tokens", "training time"):
        assert part in text or part in path.read_text()
