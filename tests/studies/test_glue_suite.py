"""The GLUE suite without its runs: data, settings, published figures, plans, and what a report makes of a result."""

import json
from pathlib import Path

import pytest

from sortyard.data.glue import TASKS
from sortyard.errors import InputError
from sortyard.evaluation.glue_sizes import part_of
from sortyard.reports.report import write_report
from sortyard.reports.suite_sections import glue_section, glue_verdict
from sortyard.studies.suites.glue_data import GlueTask, read_tasks
from sortyard.studies.suites.pages import suite_text, write_suite_page
from sortyard.studies.suites.protocols import PROTOCOLS, check_changes, glue_words, settings_of
from sortyard.studies.suites.published import PUBLISHED
from sortyard.studies.suites.runs import TrainingRun, check_plan, read_score

COLUMNS = {
    "cola": ("sentence", "label"),
    "rte": ("sentence1", "sentence2", "label"),
    "qnli": ("question", "sentence", "label"),
}


def write_split(file: Path, *, task: str, rows: int) -> None:
    file.parent.mkdir(exist_ok=True)
    *texts, label = COLUMNS[task]
    file.write_text(
        "".join(json.dumps({name: f"{name} {i} of it" for name in texts} | {label: i % 2}) + "\n" for i in range(rows))
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_settings(task: str, protocol: str) -> None:
    words = glue_words(task, protocol=protocol, changes=["finetune.loop.epochs=2"], train="a b.tsv", dev=None)
    found = settings_of(words)
    assert (found["epochs"], found["max_length"]) == (2, 128)
    if protocol == "one":
        assert (found["lr"], found["batch"], found["schedule"], found["warmup_ratio"]) == (4e-5, 16, "cosine", 0.1)


def test_a_setting_for_each_task_gives_small_sets_more_passes() -> None:
    def found(task: str) -> tuple[object, ...]:
        settings = settings_of(glue_words(task, protocol="each", changes=[], train="x", dev=None))
        return tuple(settings[name] for name in ("epochs", "batch", "lr", "schedule"))

    assert found("rte") == found("cola") == (10, 16, 3e-5, "linear")
    assert found("mnli") == found("sst2") == (3, 32, 3e-5, "linear")


@pytest.mark.parametrize(
    "word", ["seed=3", "finetune.task.data=x", "finetune.task.name=rte", "model.num_experts=2", "loop"]
)
def test_settings_of_the_suite_itself_stay(word: str) -> None:
    with pytest.raises(InputError, match=word.partition("=")[0]):
        check_changes([word])


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(InputError, match="epoch"):
        settings_of(glue_words("rte", protocol="one", changes=["finetune.loop.epoch=1"], train="x", dev=None))


def test_what_a_folder_holds(tmp_path: Path) -> None:
    write_split(tmp_path / "cola_train.jsonl", task="cola", rows=20)
    write_split(tmp_path / "cola_dev.jsonl", task="cola", rows=6)
    write_split(tmp_path / "qnli_dev.jsonl", task="qnli", rows=4)
    write_split(tmp_path / "RTE" / "train_subset.jsonl", task="rte", rows=30)
    cola, rte, qnli, mnli = read_tasks(["cola", "rte", "qnli", "mnli"], data=str(tmp_path))
    assert (cola.num_train, cola.num_dev) == (20, 6)
    assert cola.notes() == ["0.23 % of the training set", "0.58 % of the development set"]
    assert (rte.num_train, rte.num_dev, rte.dev) == (26, 4, None)
    assert "held-out training examples" in rte.notes()[0]
    assert qnli.missing == mnli.missing == f"no train split in {tmp_path.name}/"


def test_the_whole_of_a_split_needs_no_note() -> None:
    assert GlueTask("rte", "t", "d", num_train=2480, num_dev=277).notes() == []
    assert GlueTask("mnli", "t", "d", num_train=15_891, num_dev=9_815).notes() == ["4 % of the training set"]
    assert part_of(99, official=100) is None
    assert part_of(50, official=100) == 0.5


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        read_tasks(["rte"], data=str(tmp_path / "none"))
    with pytest.raises(InputError, match="a training split of none of rte, cola"):
        read_tasks(["rte", "cola"], data=str(tmp_path))
    (tmp_path / "rte_train.jsonl").write_text('{"sentence1": "a", "label": 0}\n')
    with pytest.raises(InputError, match=r"rte_train.jsonl.*sentence2"):
        read_tasks(["rte"], data=str(tmp_path))


def test_published_rows_name_their_source() -> None:
    names = [row.name for row in PUBLISHED]
    assert {"BERT-base", "BERT-large", "ModernBERT-base", "ModernBERT-large", "Ettin 68M", "Ettin 150M"} <= set(names)
    for row in PUBLISHED:
        assert row.source
        assert set(row.scores) <= set(TASKS)
        assert all(40 < value < 100 for value in [*row.scores.values(), row.average])
    large = PUBLISHED[names.index("BERT-large")]
    assert sum(large.scores.values()) / 8 == pytest.approx(large.average, abs=0.06)
    assert large.record(["rte", "cola"])["average_of_same_tasks"] == 65.5
    assert PUBLISHED[names.index("Ettin 68M")].record(["rte", "sst2"])["average_of_same_tasks"] is None


def test_a_plan_keeps_other_runs_out(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    check_plan(folder, {"model": "a", "data of rte": "x"})
    check_plan(folder, {"model": "a", "data of cola": "y"})  # another task may come
    with pytest.raises(InputError, match="another data of rte"):
        check_plan(folder, {"model": "a", "data of rte": "z"})
    with pytest.raises(InputError, match="another model"):
        check_plan(folder, {"model": "b"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        check_plan(tmp_path / "other", {"model": "a"})


def test_the_score_of_two_metrics_is_their_mean(tmp_path: Path) -> None:
    run = TrainingRun("mrpc seed 4", tmp_path / "seed-4", ("glue-mrpc",), 4, "mrpc")
    assert read_score(run) is None
    (run.folder / "eval").mkdir(parents=True)
    scores = {"f1": 0.9, "accuracy": 0.8, "combined_score": 0.85}
    (run.folder / "eval" / "mrpc.json").write_text(json.dumps({"metrics": scores}))
    (run.folder / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "seconds": 2.5}\n')
    run.spent.write_text('{"done": true, "processor_seconds": 9.0}')
    found = read_score(run)
    assert found is not None
    assert (found.score, found.steps, found.seconds, found.processor_seconds) == (0.85, 7, 2.5, 9.0)
    assert "resume" not in run.command()
    (run.folder / "resolved.yaml").touch()
    assert run.command()[:2] == ["resume", str(run.folder)]


def result_of(*, measured: tuple[str, ...] = ("rte", "mnli")) -> dict:
    seeds = [{"seed": seed, "score": 0.6, "seconds": 3.0} for seed in range(2)]
    tasks = {
        name: {
            "measured": name in measured, "why_not": "no train split in glue/", "metrics": ["accuracy"], "score": 0.625,
            "low": 0.6, "high": 0.65, "median": {"accuracy": 0.625}, "seeds": seeds, "train_examples": 100,
            "processor_seconds": 90.0, "notes": ["4 % of the training set"] if name == "mnli" else [],
        }
        for name in ("rte", "mnli", "qnli")
    }  # fmt: skip
    counted = list(measured)
    average = {"score": 0.625, "tasks": counted, "without": ["cola"]} if counted else None
    return {
        "suite": "glue", "model": "tiny-0001", "protocol": "one", "changes": [], "seeds": [0, 1], "date": "2026-01-02",
        "tasks": tasks, "average": average, "files": ["a.json"],
        "published": [row.record(counted) for row in PUBLISHED],
    }  # fmt: skip


def test_the_tables_mark_what_is_published_and_what_is_missing() -> None:
    result = result_of()
    measured, beside = glue_section(result).tables
    rows = {row[0]: row for row in measured.rows}
    assert rows["MNLI"][-1] == "4 % of the training set"
    assert rows["QNLI"][-1] == "not measured: no train split in glue/"
    assert rows["RTE"][1:3] == ("62.5", "60.0 to 65.0")
    assert beside.rows[0][0] == "tiny-0001 (measured)"
    assert all(row[0].endswith("(published)") and row[-1] for row in beside.rows[1:])
    assert "over 2 tasks: RTE, MNLI" in glue_verdict(result)
    assert "Without CoLA, so it is no GLUE average" in glue_verdict(result)
    assert "No task" in glue_verdict(result_of(measured=()))
    assert "not measured: no train split in glue/" in suite_text(result)


def test_the_report_and_the_page_show_it(tmp_path: Path) -> None:
    result = result_of()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "glue.json").write_text(json.dumps(result))
    for page in (write_report(tmp_path), write_suite_page(result, folder=tmp_path)):
        text = page.read_text(encoding="utf-8")
        assert "BERT-large (published)" in text
        assert "tiny-0001 (measured)" in text
        assert text.count('id="glue"') == 1
