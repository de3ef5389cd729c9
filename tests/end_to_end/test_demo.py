"""The whole demo, a few steps long."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = (
    "tokenizer.vocab_size=400",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.moe_intermediate_size=16",
    "pretrain.loop.steps=2",
    "finetune.loop.steps=2",
)


@pytest.mark.slow
def test_the_demo_runs_to_its_report_and_is_never_overwritten(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("demo", *TINY, "--out", "runs/demo", "-q")
    assert status == 0
    assert found["report"] == "runs/demo/report.html"
    assert set(found["scores"]) == {"majority class", "bag of words", "sortyard"}
    comparison = json.loads((yard / "runs/demo/comparison.json").read_text())
    assert comparison["model"]["accuracy"] == found["scores"]["sortyard"]
    for phase in ("pretrain", "finetune"):
        assert (yard / "runs/demo" / phase / "model/model.safetensors").is_file()
    status, again, _ = sortyard("resume", "runs/demo")
    assert (status, again["scores"]) == (0, found["scores"])
    assert sortyard("predict", "runs/demo", "-i", "text.txt", "-o", "demo-out.jsonl")[0] == 0
    assert sortyard("eval", "runs/demo")[1]["metrics"]["accuracy"] == pytest.approx(found["scores"]["sortyard"])
    status, second, err = sortyard("demo", *TINY)
    assert (status, second["run"]) == (0, "runs/demo-0002")
    assert "left as it is" in err
