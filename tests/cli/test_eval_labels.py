"""`eval` on other classes and other rows than a model was trained with, and examples that change under a run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sortyard.evaluation.batching import sequence_logits
from tests.end_to_end.conftest import write_inputs
from tests.evaluation.tiny import POSITIONS, make_bert, make_tokenizer


def _model(path: Path, *, names: Sequence[str], says: int, positions: int = POSITIONS) -> Path:
    """A dense classifier that always gives one class, whatever it reads."""
    model = make_bert(num_labels=len(names), positions=positions)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.bias[says] = 5.0
    model.save_pretrained(path)
    make_tokenizer(positions=positions).save_pretrained(path)
    return path


def _sst2(folder: Path, labels: Sequence[object]) -> Path:
    folder.mkdir()
    rows = [json.dumps({"sentence": f"w1 w{number}", "label": label}) for number, label in enumerate(labels)]
    (folder / "sst2_dev.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("names", "says"), [(("Positive", "Negative"), 0), (("NEGATIVE", "POSITIVE"), 1), (("LABEL_0", "LABEL_1"), 1)]
)
def test_outputs_are_found_by_the_names_of_the_classes(
    sortyard: Callable, tmp_path: Path, names: Sequence[str], says: int
) -> None:
    model, data = _model(tmp_path / "model", names=names, says=says), _sst2(tmp_path / "glue", [1, 1, 0, 1])
    ended = sortyard("eval", str(model), "--task", "sst2", "--data", str(data), "--json")
    assert ended.status == 0, ended.err
    assert ended.json["metrics"]["accuracy"] == 0.75


def test_a_file_of_one_class_is_scored_by_a_model_whose_classes_are_numbers(sortyard: Callable, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", names=("0", "1"), says=1)
    (tmp_path / "ones.tsv").write_text("text\tlabel\nw1\t1\nw2\t1\n")
    ended = sortyard("eval", str(model), "--task", "custom", "--data", "ones.tsv", "--json")
    assert ended.status == 0, ended.err
    assert ended.json["metrics"]["accuracy"] == 1.0


def test_a_models_folder_is_read_as_far_as_the_model_can(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def watched(*words: Any, **named: Any) -> Any:
        asked.append(named["max_length"])
        return sequence_logits(*words, **named)

    monkeypatch.setattr("sortyard.evaluation.classification.sequence_logits", watched)
    model, data = tmp_path / "model", _sst2(tmp_path / "glue", [1, 0])
    _model(model, names=("negative", "positive"), says=1, positions=300)
    assert sortyard("eval", str(model), "--task", "sst2", "--data", str(data)).status == 0
    assert asked == [300]


def test_a_regression_is_told_by_the_model(sortyard: Callable, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", names=("value",), says=0)
    (tmp_path / "stars.tsv").write_text("text\tlabel\nw1\t1.5\nw2\t4\nw3\t2.25\n")
    ended = sortyard("eval", str(model), "--task", "custom", "--data", "stars.tsv", "--json")
    assert ended.status == 0, ended.err
    assert {"spearman", "pearson"} <= set(ended.json["metrics"])


def test_other_classes_are_refused(sortyard: Callable, tmp_path: Path) -> None:
    model, data = _model(tmp_path / "model", names=("spam", "ham"), says=0), _sst2(tmp_path / "glue", [1, 0])
    ended = sortyard("eval", str(model), "--task", "sst2", "--data", str(data))
    assert ended.status == 2
    assert "the model's classes are spam, ham, those of sst2 are negative, positive" in ended.err


def test_rows_that_are_left_out_are_told(sortyard: Callable, tmp_path: Path) -> None:
    model, data = _model(tmp_path / "model", names=("negative", "positive"), says=1), _sst2(tmp_path / "glue", [1, 0])
    with (data / "sst2_dev.jsonl").open("a") as file:
        file.write(json.dumps({"sentence": "", "label": 1}) + "\n")
    ended = sortyard("eval", str(model), "--task", "sst2", "--data", str(data), "--json")
    assert ended.json["skipped"] == 1
    assert "skipped   1 rows" in ended.out + ended.err


def test_examples_that_changed_under_a_run_are_refused(sortyard: Callable, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    rows = [f"the cat sat {number}\t{number % 2}" for number in range(40)]
    train = tmp_path / "train.tsv"
    train.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    words = ["finetune", "tiny.yaml", "--task", "custom", "--data", "train.tsv", "--from", "scratch", "--out", "run"]
    quick = ["finetune.loop.epochs=null", "finetune.loop.steps=4", "finetune.task.max_length=32"]
    ended = sortyard(*words, *quick, "-q")
    assert ended.status == 0, ended.err
    assert sortyard("resume", "run", "-q").status == 0
    train.write_text("\n".join(["text\tlabel", *rows, "the dog ran\t1"]) + "\n")
    ended = sortyard("resume", "run", "-q")
    assert ended.status == 2
    assert "are not those that run was begun with" in ended.err
    assert sortyard("resume", "run", "--allow", "finetune.task.data", "-q").status == 0
    assert sortyard("resume", "run", "-q").status == 0
