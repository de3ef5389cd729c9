"""What a run recorded: its kind, and which of its evaluations are its own."""

import json
from pathlib import Path

import pytest

from sortyard.reports.model_card import write_model_card
from sortyard.reports.run_data import read_run
from tests.reports.conftest import add_evaluation, fill


@pytest.mark.parametrize(("verb", "is_finetuning"), [("pretrain", False), ("adapt", False), ("finetune", True)])
def test_the_verb_says_what_a_run_is(tmp_path: Path, verb: str, is_finetuning: bool) -> None:
    run = fill(tmp_path / "run", name="mine", steps=20, start=2.0, end=1.0)
    add_evaluation(run)  # by `sortyard eval`, of whatever kind the run is
    (run.path / "job.json").write_text(json.dumps({"verb": verb}))
    assert read_run(run.path).final.is_finetuning == is_finetuning


def test_a_run_of_no_known_verb_is_what_its_scores_say(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", name="mine", steps=20, start=2.0, end=1.0)
    run.eval.mkdir()
    (run.eval / "perplexity.json").write_text(json.dumps({"perplexity": 9.0}))
    assert not read_run(run.path).final.is_finetuning


def test_the_scores_of_the_runs_own_end_come_first(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", name="mine", steps=20, start=2.0, end=1.0)
    add_evaluation(run, right=178)
    own = json.loads((run.eval / "custom.json").read_text())
    later = own | {"metrics": {"accuracy": 0.111, "f1_macro": 0.1}}
    (run.eval / "another-again.json").write_text(json.dumps(later))
    assert [one.name for one in read_run(run.path).final.evaluations] == ["custom", "another-again"]
    assert "71.2 %" in write_model_card(run.path).read_text()
