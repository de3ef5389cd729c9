"""Whole models as ONNX files: what is refused, and, slowly, every kind of model."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sortyard import SortyardConfig, SortyardModel
from sortyard.errors import InputError
from sortyard.interop import export_onnx
from sortyard.interop.onnx.program import onnx_difference
from tests.interop.onnx.exported_files import SIZES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "rounds"}, "selection is 'rounds'"),
        ({"causal": True, "context": "ema"}, "causal is true"),
        ({"causal": True, "context": "ema", "attention_layers": ["sliding", "bucket"]}, "causal is true"),
    ],
)
def test_buckets_without_an_onnx_form_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    model = SortyardModel(SortyardConfig(**SIZES | changes))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(InputError, match="needs onnxruntime: run pip install onnxruntime"):
        export_onnx(SortyardModel(SortyardConfig(**SIZES)), tmp_path / "model.onnx")


def test_near_ties_get_another_draw_and_a_wrong_graph_does_not_pass() -> None:
    model = SortyardModel(SortyardConfig(**SIZES)).eval()
    calls = []

    def run(shift: float, times: int, **inputs: Tensor) -> dict[str, Tensor]:
        calls.append(inputs["input_ids"].shape)
        with torch.no_grad():
            found = model(**inputs).last_hidden_state
        return {"last_hidden_state": found + (shift if len(calls) <= times else 0.0)}

    found, draws = onnx_difference(lambda **inputs: run(1.0, 3, **inputs), model, tolerance=1e-4)
    assert (max(found.values()), draws) == (0.0, 2)
    assert calls[:3] == [(1, 3), (3, 40), (2, 128)]  # dense, and two beyond the crossover
    found, draws = onnx_difference(lambda **inputs: run(1.0, 10**6, **inputs), model, tolerance=1e-4)
    assert min(found.values()) > 0.9
    assert draws == 5


@pytest.mark.slow
def test_every_kind_of_model_is_exported(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    words = [sys.executable, "-m", "tests.interop.onnx.exported_files", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
