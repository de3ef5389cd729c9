"""`eval --data NAME=PATH ...`: loss and perplexity by domain are those of each text by itself."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from sortyard.cli.main import main
from tests.end_to_end.conftest import WORDS, write_inputs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a masked and a causal language model, and two texts."""
    folder = tmp_path_factory.mktemp("domains")
    write_inputs(folder)
    for name, words in (("animals", WORDS[:8]), ("places", WORDS[8:])):
        rows = ({"text": " ".join(words[(i * j) % len(words)] for j in range(20 + i))} for i in range(1, 30))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    causal = ["pretrain.objective=causal_lm", "model.context=running_mean", "name=causal"]
    with chdir(folder):
        assert main(["pretrain", "tiny.yaml", "-q"]) == 0
        assert main(["pretrain", "tiny.yaml", *causal, "-q"]) == 0
    return folder


@pytest.fixture
def yard(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to, as the working folder of `sortyard`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("run", ["runs/tiny-0001", "runs/causal-0001"])
def test_domains_are_what_each_text_scores_alone(sortyard: Callable, yard: Path, run: str) -> None:
    ended = sortyard("eval", run, "--data", "animals.jsonl", "--data", "elsewhere=places.jsonl", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert [row["name"] for row in found["domains"]] == ["animals", "elsewhere"]
    for row, file in zip(found["domains"], ("animals.jsonl", "places.jsonl"), strict=True):
        alone = sortyard("eval", run, "--data", file, "--json").json["evaluation"]
        assert {name: row[name] for name in alone} == alone
    total, rows = found["total"], found["domains"]
    assert total["num_targets"] == sum(row["num_targets"] for row in rows)
    mean = sum(row["loss"] * row["num_targets"] for row in rows) / total["num_targets"]
    assert total["loss"] == pytest.approx(mean, rel=1e-12)
    assert total["perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)
    assert (found["masking"] is None) == (found["objective"] == "causal_lm")
    kept = json.loads((yard / run / "eval/perplexity.json").read_text())
    assert kept == {key: value for key, value in found.items() if key not in ("run", "file")}
    assert str(yard) not in json.dumps(kept)
    assert sortyard("report", run).status == 0
    assert "Perplexity by domain" in (yard / run / "report.html").read_text()


def test_one_named_text_and_another_column(sortyard: Callable, yard: Path) -> None:
    rows = [json.loads(line) for line in (yard / "animals.jsonl").read_text().splitlines()]
    (yard / "body.jsonl").write_text("".join(json.dumps({"body": row["text"]}) + "\n" for row in rows))
    usual = sortyard("eval", "runs/tiny-0001", "--data", "a=animals.jsonl", "--json").json
    other = sortyard("eval", "runs/tiny-0001", "--data", "a=body.jsonl", "--text-column", "body", "--json").json
    assert other["total"] == usual["total"]
    shown = sortyard("eval", "runs/tiny-0001", "--data", "a=animals.jsonl").out
    assert "perplexity" in shown
    assert "perplexity.json" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "animals.jsonl", "--data", "animals.jsonl"], "two texts are called 'animals'"),
        (["--data", "all=animals.jsonl"], "is what the total is called"),
        (["--data", "a=animals.jsonl", "--data", "b=none.jsonl"], "none.jsonl"),
        (["--data", "a=animals.jsonl", "--text-column", "body"], "no column 'body'"),
        (["--data", "animals.jsonl", "--text-column", "body"], "--text-column body: is for several --data"),
        (["--task", "rte", "--data", "animals.jsonl", "--data", "places.jsonl"], "is given 2 times"),
    ],
)
def test_what_is_refused(sortyard: Callable, yard: Path, words: list[str], message: str) -> None:
    ended = sortyard("eval", "runs/tiny-0001", *words)
    assert ended.status == 2
    assert message in ended.err
    assert not (yard / "runs/tiny-0001/eval/perplexity.json").exists()


def test_a_classifier_has_no_perplexity(sortyard: Callable, yard: Path) -> None:
    assert sortyard("finetune", "tiny.yaml", "--from", "runs/tiny-0001", "-q").status == 0
    ended = sortyard("eval", "runs/tiny-custom-0001", "--data", "animals.jsonl", "--data", "places.jsonl")
    assert ended.status == 2
    assert "needs a pretraining run" in ended.err
