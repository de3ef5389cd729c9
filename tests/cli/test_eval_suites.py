"""`eval --suite`: real runs in processes, taken up where they stop, and what is refused before any work."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import pytest

from sortyard.cli.main import main
from sortyard.reports.run_data import read_run
from tests.end_to_end.conftest import write_inputs

QUICK = ("finetune.loop.epochs=null", "finetune.loop.steps=2", "finetune.task.max_length=32")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretraining run and a GLUE folder that has RTE and half of QNLI."""
    folder = tmp_path_factory.mktemp("suites")
    write_inputs(folder)
    (folder / "glue").mkdir()
    for name, columns, count in (
        ("rte_train", ("sentence1", "sentence2"), 24),
        ("rte_dev", ("sentence1", "sentence2"), 8),
        ("qnli_dev", ("question", "sentence"), 8),
    ):
        rows = [dict.fromkeys(columns, f"the cat sat {i}") | {"label": i % 2} for i in range(count)]
        (folder / f"glue/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with chdir(folder):
        assert main(["pretrain", "tiny.yaml", "-q"]) == 0
    return folder


@pytest.fixture
def yard(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to, as the working folder of `sortyard`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_glue_is_measured_kept_and_taken_up(sortyard: Callable, yard: Path) -> None:
    words = [
        "eval",
        "runs/tiny-0001",
        *QUICK,
        "--suite",
        "glue",
        "--data",
        "glue",
        "--tasks",
        "rte,qnli",
        "--seeds",
        "1",
    ]
    ended = sortyard(*words, "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["tasks"]["qnli"] == found["tasks"]["qnli"] | {"measured": False, "why_not": "no train split in glue/"}
    rte = found["tasks"]["rte"]
    assert (rte["measured"], rte["train_examples"], len(rte["seeds"])) == (True, 24, 1)
    assert rte["notes"] == ["0.96 % of the training set", "2.9 % of the development set"]
    assert found["average"] == {
        "score": rte["score"],
        "tasks": ["rte"],
        "without": ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli"],
    }
    assert str(yard) not in json.dumps({key: value for key, value in found.items() if key != "files"})
    run = yard / "runs/glue-tiny-0001/rte/seed-0"
    assert json.loads((run / "eval/rte.json").read_text())["metrics"]["accuracy"] == rte["score"]
    assert list((run / "model").glob("*.safetensors")) == []

    again = sortyard(*words)
    assert "1 of 1 are done already" in again.err
    assert "not measured: no train split in glue/" in again.out
    assert "BERT-large (published)" in again.out
    other = sortyard(*words, "finetune.optimizer.lr=1e-3")
    assert other.status == 2
    assert "another changes" in other.err

    assert sortyard("report", "runs/tiny-0001").status == 0
    assert "BERT-large (published)" in (yard / "runs/tiny-0001/report.html").read_text()
    assert [each.name for each in read_run(yard / "runs/tiny-0001").final.evaluations] == ["glue"]


def test_long_inputs_at_every_length_that_fits(sortyard: Callable, yard: Path) -> None:
    words = ["eval", "runs/tiny-0001", *QUICK[:2], "--suite", "long", "--tasks", "listops,imdb", "--lengths", "64,128"]
    ended = sortyard(*words, "--data", "glue", "--train-examples", "16", "--test-examples", "8", "--json")
    assert ended.status == 0, ended.err
    tasks = ended.json["tasks"]
    assert tasks["imdb"] == {"measured": False, "why_not": "not measured: no such file among the data"}
    cells = tasks["listops"]["cells"]
    assert cells["128"] == {"measured": False, "why_not": "64 positions"}
    assert (cells["64"]["measured"], cells["64"]["steps"]) == (True, 2)
    assert 8 < cells["64"]["mean_tokens"] <= 64
    assert 0 < cells["64"]["sparsity"] < 1
    assert (yard / "runs/tiny-0001/eval/long.json").is_file()
    assert sortyard("report", "runs/tiny-0001").status == 0
    assert "64 positions" in (yard / "runs/tiny-0001/report.html").read_text()


@pytest.mark.slow
def test_a_fault_in_a_run_is_told_with_its_name(sortyard: Callable, yard: Path) -> None:
    words = ["eval", "runs/tiny-0001", *QUICK, "--suite", "glue", "--data", "glue", "--tasks", "rte", "--seeds", "1"]
    (yard / "runs/glue-tiny-0001/rte/seed-0").mkdir(parents=True)
    assert sortyard(*words).status == 2  # a folder of somebody else
    shutil.rmtree(yard / "runs/glue-tiny-0001")
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed, so nothing is at fault")
    ended = sortyard(*words, "finetune.loop.trackers=[wandb]")
    assert ended.status == 2
    assert "rte seed 0: " in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "glu", "--data", "glue"], "--suite glu: is none of glue, long"),
        (["--suite", "glue"], "needs one --data"),
        (["--suite", "glue", "--data", "glue", "--tasks", "rte,sst3"], "sst3"),
        (["--suite", "glue", "--data", "glue", "--protocol", "all"], "--protocol all"),
        (["--suite", "glue", "--data", "glue", "--lengths", "512"], "--lengths 512: is not for --suite glue"),
        (["--suite", "glue", "--data", "glue", "--task", "rte"], "choose tasks by --tasks"),
        (["--suite", "glue", "--data", "glue", "--routing"], "--routing: is not for --suite"),
        (["--suite", "glue", "--data", "glue"], "has 64 positions"),
        (["seed=4", "--suite", "glue", "--data", "glue"], "seed=4"),
        (["--suite", "glue", "--data", "none", *QUICK], "is no folder"),
        (["--suite", "long"], "needs --data"),
        (["--suite", "long", "--data", "glue", "--protocol", "one"], "--protocol one: is not for --suite long"),
        (["--suite", "long", "--data", "none", "--lengths", "64"], "no such folder or file"),
        (["--suite", "long", "--data", "glue", "--lengths", "512"], "fewer than the shortest"),
        (["--suite", "long", "--data", "glue", "--lengths", "16"], "64 tokens or more"),
        (["--tasks", "rte"], "is only for --suite"),
        (["--seeds", "2"], "is only for --suite"),
        (["finetune.loop.epochs=1"], "is only for --suite"),
    ],
)
def test_what_is_refused_before_any_work(sortyard: Callable, yard: Path, words: list[str], message: str) -> None:
    ended = sortyard("eval", "runs/tiny-0001", *words)
    assert ended.status == 2
    assert message in ended.err
    assert not list((yard / "runs").glob("glue-*"))
    assert not list((yard / "runs").glob("long-*"))
