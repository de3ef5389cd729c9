"""`export`: a model's folder for others, as it is and as a program that runs at any shape."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sortyard.interop.onnx.program import load_onnx
from tests.interop.saved import save

RUN = """
import sys, torch, sortyard.ops, sortyard.model.experts.context
program = torch.export.load(sys.argv[1]).module()
for length in (2, 16, 17, 60, 96):
    ids = torch.arange(3 * length).reshape(3, length) % 70 + 5
    mask = torch.ones_like(ids)
    mask[1, length // 2:] = 0
    print(program(input_ids=ids, attention_mask=mask)["logits"].double().sum().item())
"""


def test_a_program_gives_the_models_logits_on_both_sides_of_the_crossover(tmp_path: Path) -> None:
    save("sequence_classification", tmp_path / "model")
    words = ["-m", "sortyard", "export", "model", "--format", "torch", "--out", "out", "--json"]
    # In a process of its own: the shape checks of the tests refuse the tracer's symbols.
    ended = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    account = json.loads(ended.stdout.splitlines()[-1])
    assert set(account["largest_difference"]) == {"1x3", "3x40", "2x96"}
    assert max(account["largest_difference"].values()) < 1e-6
    assert "model.safetensors" not in account["files"]
    AutoTokenizer.from_pretrained(tmp_path / "out")
    found = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "out" / "model.pt2")], capture_output=True, text=True, check=True
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    for line, length in zip(found.stdout.split(), (2, 16, 17, 60, 96), strict=True):
        ids = torch.arange(3 * length).reshape(3, length) % 70 + 5
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        with torch.no_grad():
            wanted = model(ids, mask).logits.double().sum().item()
        assert float(line) == pytest.approx(wanted, abs=1e-5)


def test_an_onnx_file_gives_the_models_logits_on_both_sides_of_the_crossover(tmp_path: Path) -> None:
    save("sequence_classification", tmp_path / "model")
    words = ["-m", "sortyard", "export", "model", "--format", "onnx", "--out", "out", "--json"]
    ended = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    account = json.loads(ended.stdout.splitlines()[-1])
    assert set(account["largest_difference"]) == {"1x3", "3x40", "2x96"}
    assert max(account["largest_difference"].values()) < 1e-6
    assert {"model.onnx", "tokenizer.json"} < set(account["files"])
    assert "model.safetensors" not in account["files"]
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b".py" not in content  # nothing of where it was made
    run = load_onnx(tmp_path / "out" / "model.onnx")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    for length in (1, 16, 17, 60, 96):
        ids = torch.arange(3 * length).reshape(3, length) % 70 + 5
        mask = torch.ones_like(ids)
        mask[1, (length + 1) // 2 :] = 0
        with torch.no_grad():
            wanted = model(ids, mask).logits
        found = run(input_ids=ids, attention_mask=mask)["logits"]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_head_without_weights_is_refused(tmp_path: Path, sortyard: Callable) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("sequence_classification", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("classifier.")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    ended = sortyard("export", "model", "--format", "torch", "--out", "out")
    assert ended.status == 2
    assert "has no weights for classifier.bias, classifier.weight" in ended.err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".aside*"))


def test_every_kind_of_model_is_exported(tmp_path: Path) -> None:
    save("sequence_classification", tmp_path)
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "tests.interop.exported_models", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_ordinary_folder(sortyard: Callable, tmp_path: Path) -> None:
    save("sequence_classification", tmp_path / "model")
    ended = sortyard("export", "model", "--out", "out", "--json")
    assert (ended.status, ended.json["format"]) == (0, "huggingface")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "sortyard"
    assert sortyard("export", "model", "--out", "out").status == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["Nothing"]}, "'Nothing', which is not known"),
        ({"architectures": None}, "None, which is not"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    config: dict[str, object], message: str, sortyard: Callable, tmp_path: Path
) -> None:
    save("sequence_classification", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    ended = sortyard("export", "model", "--format", "torch", "--out", "out", "--json")
    assert ended.status == 2
    assert message in ended.json["error"]
    assert not (tmp_path / "out").exists()
    assert sortyard("export", "nowhere", "--out", "out").status == 2


def test_buckets_without_an_onnx_form_are_refused(sortyard: Callable, tmp_path: Path) -> None:
    save("sequence_classification", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"selection": "rounds"}))
    ended = sortyard("export", "model", "--format", "onnx", "--out", "out", "--json")
    assert ended.status == 2
    assert "selection is 'rounds'" in ended.json["error"]
    assert not (tmp_path / "out").exists()
