"""Run folders as training writes them, small and synthetic, plus a real tiny model's inspection."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sortyard.runs.folder import RunFolder

NASTY = "<script>alert('x')</script> & \"quoted\" </style> {{ 7 * 7 }}"
ENVIRONMENT = {
    "versions": {"sortyard": "0.1.0", "torch": "2.13.0"},
    "machine": {"cpu": "A processor", "cores": 2, "device": "cpu"},
    "commit": None,
    "seed": 7,
    "command": "sortyard demo --out runs/demo",
}


def fill(
    path: Path, *, name: str, steps: int, start: float, end: float, experts: int = 8, layers: int = 3
) -> RunFolder:
    recipe = f"name: {name}\nseed: 7\npretrain:\n  data:\n    path: /home/someone/docs.jsonl\n"
    recipe += "finetune:\n  task:\n    name: custom\n    data: /home/someone/modules.tsv\n    max_length: 128\n"
    run = RunFolder.create(path, recipe=recipe, resolved=recipe, environment=ENVIRONMENT)
    generator = np.random.default_rng(0)
    run.append_event("start", step=0)
    for step in range(10, steps + 1, 10):
        progress = step / steps
        loss = end + (start - end) * math.exp(-4 * progress) + 0.06 * generator.standard_normal()
        values = {
            "epoch": progress, "loss": loss + 0.01, "task_loss": loss, "balance_loss": 0.01, "grad_norm": 1.0,
            "lr": 3e-4 * min(1.0, 10 * progress) * (1 - progress), "tokens": step * 2048,
            "tokens_per_second": 9800 + 300 * generator.standard_normal(), "memory_bytes": 1.05e9 + 1e6 * step,
            "utilisation": 0.9, "experts_used": experts, "sparsity": 0.41, "seconds": step * 0.21,
        }  # fmt: skip
        run.append_metric("train", step, values)
        tilt = generator.normal(0, 0.9 * (1 - progress) + 0.15, (layers, experts))
        run.append_routing(step, (np.exp(tilt) / np.exp(tilt).sum(-1, keepdims=True)).astype(np.float32))
        if step % 100 == 0:
            run.append_event("checkpoint", step=step)
            run.append_metric("eval", step, {"loss": loss + 0.1, "accuracy": 0.2 + 0.45 * progress})
    run.append_event("resume", step=steps // 2)
    run.append_event("finish", step=steps)
    run.sync()
    return run


def add_evaluation(
    run: RunFolder, *, names: tuple[str, ...] = ("net", "text", "data", NASTY), right: int = 178
) -> None:
    total = 250
    rows = [
        {
            "index": i, "text": f"{NASTY} number {i}. Reads a configuration file and returns its sections.",
            "label": names[i % 4], "prediction": names[i % 4] if i < right else names[(i + 1) % 4],
            "correct": i < right, "score": 0.4 + 0.5 * (i % 7) / 7, "logits": [0.0] * 4,
        }
        for i in range(total)
    ]  # fmt: skip
    confusion = [[sum(r["label"] == a and r["prediction"] == b for r in rows) for b in names] for a in names]
    result = {
        "task": "custom", "type": "classification", "num_examples": total,
        "metrics": {"accuracy": right / total, "f1_macro": 0.7}, "main_metric": "accuracy",
        "interval": {"low": 0.653, "high": 0.764, "level": 0.95, "method": "Wilson score"}, "label_names": names,
        "confusion": confusion, "seconds": 3.0,
        "baselines": [
            {"name": "majority class", "metrics": {"accuracy": 0.252, "f1_macro": 0.1}},
            {"name": "bag of words", "metrics": {"accuracy": 0.68, "f1_macro": 0.66}},
        ],
    }  # fmt: skip
    run.eval.mkdir()
    (run.eval / "custom.json").write_text(json.dumps(result))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run.eval / "custom-predictions.jsonl").write_text(lines)


def synthetic_inspection(*, length: int = 40, experts: int = 8) -> dict[str, object]:
    place = np.arange(length)
    mass = np.exp(-np.abs(place[:, None] - place) / 4)
    kind = np.where(np.abs(place[:, None] - place) < 12, 1, 2)
    tokens = ["[CLS]", NASTY, *[f"w{i}" for i in range(length - 2)]]
    quality = {"mass_kept": 0.93, "output_error": 0.042, "sparsity": 0.41}
    picture = {"layer": 1, "head": 2, "tokens": tokens, "mass": (mass / mass.sum(1, keepdims=True)).tolist()}
    samples = [
        {"tokens": tokens, "experts": [[[(i * 3 + j) % experts, i % experts] for i in range(length)] for j in range(3)]}
    ]
    return {
        "buckets": {
            "num_tokens": length,
            "layers": [{"layer": i, **quality} for i in range(3)],
            "picture": {**picture, "kind": kind.tolist(), **quality},
        },
        "routing": {"num_experts": experts, "num_layers": 3, "samples": samples},
    }


@pytest.fixture
def pretrain_run(tmp_path: Path) -> Path:
    return fill(tmp_path / "mine-0001", name="mine", steps=900, start=8.1, end=3.9).path


@pytest.fixture
def finetune_run(tmp_path: Path) -> Path:
    run = fill(tmp_path / "mine-task", name="mine-task", steps=300, start=1.4, end=0.6)
    add_evaluation(run)
    (run.path / "inspection.json").write_text(json.dumps(synthetic_inspection()))
    return run.path


@pytest.fixture
def demo_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*, accuracy: float = 0.712) -> Path:
        folder = tmp_path / "demo"
        fill(folder / "pretrain", name="demo", steps=900, start=8.1, end=3.9)
        run = fill(folder / "finetune", name="demo", steps=300, start=1.4, end=0.6)
        add_evaluation(run)
        (run.path / "inspection.json").write_text(json.dumps(synthetic_inspection()))
        comparison = {
            "model": {"name": "sortyard", "accuracy": accuracy},
            "baselines": [{"name": "majority class", "accuracy": 0.252}, {"name": "bag of words", "accuracy": 0.68}],
            "task": "Which library does a text document?",
            "classes": 4,
        }
        (folder / "comparison.json").write_text(json.dumps(comparison))
        return folder

    return make
