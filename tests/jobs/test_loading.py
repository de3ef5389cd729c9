"""What fine-tuning keeps of the model that it starts from."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sortyard.data.glue import TASKS
from sortyard.jobs.display import Display
from sortyard.jobs.loading import load_classifier
from tests.evaluation.tiny import make_bert


def _named(path: Path, names: Sequence[str]) -> Path:
    model = make_bert(num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("sst2", ("negative", "positive")),
        ("sst2", ("NEGATIVE", "POSITIVE")),
        ("sst2", ("LABEL_0", "LABEL_1")),
        ("rte", ("entailment", "not_entailment")),
        ("stsb", ("LABEL_0",)),
        ("stsb", ("stars",)),
    ],
)
def test_a_head_for_the_same_classes_is_kept(task: str, names: Sequence[str], tmp_path: Path) -> None:
    told: list[str] = []
    start = str(_named(tmp_path / "start", names))
    model = load_classifier(start, task=TASKS[task], seed=0, display=Display(say=told.append))
    assert model.classifier.weight.equal(make_bert(num_labels=len(names)).classifier.weight)
    assert not told


@pytest.mark.parametrize("names", [("ham", "spam"), ("positive", "negative"), ("0", "1")])
def test_a_head_for_other_classes_is_not(names: Sequence[str], tmp_path: Path) -> None:
    told: list[str] = []
    start = str(_named(tmp_path / "start", names))
    model, again = (
        load_classifier(start, task=TASKS["sst2"], seed=seed, display=Display(say=told.append)) for seed in (4, 4)
    )
    own = make_bert(num_labels=2)
    assert model.classifier.weight.equal(again.classifier.weight)
    assert not model.classifier.weight.equal(own.classifier.weight)
    assert not model.classifier.bias.any()
    assert all(map(torch.equal, model.bert.state_dict().values(), own.bert.state_dict().values()))
    assert told == [f"head      new: the one of {start} is for the classes {', '.join(names)}"] * 2
    model.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["id2label"] == {"0": "negative", "1": "positive"}
