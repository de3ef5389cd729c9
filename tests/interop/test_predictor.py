"""The predictor beside transformers' own pipeline, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertModel, pipeline

from sortyard.errors import InputError
from sortyard.interop import Prediction, Predictor
from tests.evaluation.tiny import make_bert, make_texts, make_tokenizer
from tests.interop.saved import save as save_sortyard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert")


def save(path: Path, *, num_labels: int = 3, **settings: object) -> Path:
    model = make_bert(num_labels=num_labels)
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def test_equals_transformers_pipeline(folder: Path) -> None:
    texts = make_texts(40)
    classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    wanted = [classify(text, truncation=True)[0] for text in texts]
    found = list(Predictor.from_pretrained(folder).predict(iter(texts), batch_size=7))
    for theirs, ours in zip(wanted, found, strict=True):
        assert ours.label == theirs[0]["label"]
        assert ours.scores == pytest.approx({row["label"]: row["score"] for row in theirs}, abs=1e-5)
        assert ours.score == max(ours.scores.values())


def test_an_answer_that_is_no_number_is_an_error(folder: Path) -> None:
    predictor = Predictor.from_pretrained(folder)
    predictor.model.classifier.bias.data[1] = torch.nan
    with pytest.raises(InputError, match="text 1: the model answers with NaN in torch"):
        next(predictor.predict(["w1 w2"]))


def test_pairs_and_single_texts_may_be_mixed(folder: Path) -> None:
    predictor, tokenizer = Predictor.from_pretrained(folder), make_tokenizer()
    found = list(predictor.predict(["w1 w2", ("w1 w2", "w3"), "w4"], batch_size=2))
    with torch.inference_mode():
        logits = make_bert()(**tokenizer("w1 w2", "w3", return_tensors="pt")).logits[0]
    assert found[1].logits == pytest.approx(logits.tolist(), abs=1e-5)
    assert found[0].logits != found[1].logits


def test_streams_without_reading_everything(folder: Path) -> None:
    def endless():
        while True:
            yield "w1"

    stream = Predictor.from_pretrained(folder).predict(endless(), batch_size=2)
    assert isinstance(next(stream), Prediction)


def test_regression_gives_the_value(tmp_path: Path) -> None:
    (found,) = Predictor.from_pretrained(save(tmp_path / "model", num_labels=1)).predict(["w1"])
    assert found.label is None
    assert found.score == found.logits[0]
    assert json.loads(json.dumps(found.as_dict()))["label"] is None


def test_several_labels_at_once_are_independent(tmp_path: Path) -> None:
    path = save(tmp_path / "model", problem_type="multi_label_classification")
    (found,) = Predictor.from_pretrained(path).predict(["w1"])
    assert list(found.scores.values()) == pytest.approx(torch.tensor(found.logits).sigmoid().tolist())


def test_half_precision(folder: Path) -> None:
    (found,) = Predictor.from_pretrained(folder, precision="bf16").predict(["w1 w2 w3"])
    (exact,) = Predictor.from_pretrained(folder).predict(["w1 w2 w3"])
    assert found.logits == pytest.approx(exact.logits, abs=0.2)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bf16_where_the_machine_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    asked = []
    monkeypatch.setattr("sortyard.interop.predictor.has_bf16", lambda kind: asked.append(kind) or has_bf16)
    assert Predictor.from_pretrained(folder, precision="auto").model.dtype == dtype
    assert asked == ["cpu"]


def test_without_a_compiler_nothing_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler"):
        Predictor.from_pretrained(folder, compiled=True)


@pytest.mark.slow
def test_compiled_answers_are_the_same_from_a_few_graphs(tmp_path: Path) -> None:
    save_sortyard("sequence_classification", tmp_path)
    words = [sys.executable, "-m", "tests.interop.compiled_predictions", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    difference, graphs, breaks = done.stdout.split()
    assert float(difference) < 1e-5
    assert int(graphs) <= 6
    assert int(breaks) == 0


def absent(folder: Path) -> Path:
    return folder / "absent"


def empty(folder: Path) -> Path:
    return folder


def of_a_run(folder: Path) -> Path:
    save(folder / "model")
    return folder


def without_head(folder: Path) -> Path:
    BertModel(make_bert().config).save_pretrained(folder)
    return folder


def without_tokenizer(folder: Path) -> Path:
    make_bert().save_pretrained(folder)
    return folder


def damaged(folder: Path) -> Path:
    save(folder)
    (folder / "config.json").write_text("{")
    return folder


def without_weights(folder: Path) -> Path:
    save(folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (absent, "no such folder"),
        (empty, "no config.json"),
        (of_a_run, "did you mean .*model"),
        (without_head, "no sequence-classification head"),
        (without_tokenizer, "has no tokenizer"),
        (damaged, "not a JSON object"),
        (without_weights, "cannot be loaded"),
    ],
)
def test_unusable_folders_are_explained(tmp_path: Path, prepare: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor.from_pretrained(prepare(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"device": "toaster"}, "device is"), ({"precision": "int3"}, "precision is")],
)
def test_unusable_settings(folder: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor.from_pretrained(folder, **settings)


@pytest.mark.parametrize(
    ("texts", "batch_size", "message"),
    [("one text", 2, "single string"), ([1], 2, "text 1 is int"), (["w1"], 0, "batch_size is 0")],
)
def test_unusable_texts(folder: Path, texts: object, batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(Predictor.from_pretrained(folder).predict(texts, batch_size=batch_size))
