"""A model's origin is followed through runs to a name on the hub, and never guessed."""

import json
from pathlib import Path

import pytest

from sortyard.reports.origin import base_model


def start(folder: Path, place: object) -> Path:
    """A run that started from somewhere."""
    (folder / "model").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"verb": "finetune", "start": place}))
    return folder / "model"


def upcycled(folder: Path, account: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "upcycling.json").write_text(json.dumps(account))
    return folder


def test_through_adapting_and_fine_tuning_to_the_checkpoint(tmp_path: Path) -> None:
    sparse = upcycled(tmp_path / "sparse", {"source": "org/dense", "base_model": "org/dense"})
    adapted = start(tmp_path / "adapted", str(sparse))
    assert base_model(start(tmp_path / "tuned", str(adapted))) == "org/dense"


@pytest.mark.parametrize(("place", "found"), [("bert-base", "bert-base"), ("org/x", "org/x"), ("a/b/c", None)])
def test_a_run_from_the_hub(place: str, found: str | None, tmp_path: Path) -> None:
    assert base_model(start(tmp_path / "run", place)) == found


@pytest.mark.parametrize("place", ["scratch", None, 3, "/gone/model"], ids=str)
def test_no_name_is_made_up(place: object, tmp_path: Path) -> None:
    assert base_model(start(tmp_path / "run", place)) is None


def test_a_local_checkpoint_has_no_name(tmp_path: Path) -> None:
    assert base_model(upcycled(tmp_path / "sparse", {"source": "dense", "base_model": None})) is None
    assert base_model(upcycled(tmp_path / "older", {"source": "dense"})) is None


def test_a_run_that_started_from_itself_ends(tmp_path: Path) -> None:
    assert base_model(start(tmp_path / "run", str((tmp_path / "run" / "model").resolve()))) is None
