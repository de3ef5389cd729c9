"""The whole demo, a few steps long."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.data.stdlib import StdlibDocument
from sortyard.jobs.stdlib_task import DEV, TEXT, TRAIN, dev_modules, write_stdlib_files

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


def documents() -> list[StdlibDocument]:
    sizes = range(1, 41)
    return [StdlibDocument(f"m{i}", "ab"[i % 2], (f"module {i} " + "word " * 70 * (1 + i % 3),)) for i in sizes]


def test_development_modules_are_whole_and_about_a_fifth() -> None:
    chosen = dev_modules(documents())
    assert chosen == dev_modules(documents()[::-1])
    for family in "ab":
        sizes = {d.module: len(d.text) for d in documents() if d.family == family}
        share = sum(size for module, size in sizes.items() if module in chosen) / sum(sizes.values())
        assert 0.1 < share < 0.25


def test_no_text_of_the_development_modules_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sortyard.data.stdlib.stdlib_corpus", lambda: iter(documents()))
    write_stdlib_files(tmp_path)
    seen = (tmp_path / TEXT).read_text() + (tmp_path / TRAIN).read_text()
    rows = [json.loads(line) for line in (tmp_path / DEV).read_text().splitlines()]
    assert rows
    assert {row["label"] for row in rows} == {"a", "b"}
    for row in rows:
        assert json.dumps(row["text"]) not in seen
