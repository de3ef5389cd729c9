"""`predict --resume` with another model than the answers are from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.evaluation.tiny import make_bert, make_tokenizer


def _model(path: Path, *, shift: float) -> Path:
    model = make_bert(num_labels=2)
    with torch.no_grad():
        model.classifier.bias += shift
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def test_answers_of_two_models_are_not_mixed(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sortyard.evaluation.batching.WINDOW_TEXTS", 2)
    first, other = _model(tmp_path / "first", shift=0.0), _model(tmp_path / "other", shift=0.5)
    texts, source, target = [f"w{number}" for number in range(20)], tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join([*texts[:15], "\x00", *texts[16:]]) + "\n")
    words = ("predict", "--input", str(source), "--output", str(target))
    assert sortyard(*words, str(first)).status == 2
    source.write_text("\n".join(texts) + "\n")
    begun = tmp_path / ".aside-out.jsonl"
    kept = begun.read_bytes()
    ended = sortyard(*words, str(other), "--resume")
    assert ended.status == 2
    assert "its answers are not known to be those of this model" in ended.err
    assert begun.read_bytes() == kept
    shutil.copytree(first, tmp_path / "copy")
    assert sortyard(*words, str(tmp_path / "copy"), "--resume").status == 0
    assert len(target.read_text().splitlines()) == 20
    assert not list(tmp_path.glob(".aside*"))
