"""Every verb on tiny runs."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from sortyard.recipe import load_recipe


def test_a_run_folder_holds_what_it_should(yard: Path) -> None:
    for name in ("tiny-0001", "tiny-custom-0001"):
        run = yard / "runs" / name
        for file in ("README.md", "report.html", "recipe.yaml", "resolved.yaml", "env.json", "metrics.jsonl"):
            assert (run / file).stat().st_size > 0, file
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert (run / "model" / file).is_file(), file
        environment = json.loads((run / "env.json").read_text())
        assert len(environment["data_fingerprint"]) == 16
    scores = json.loads((yard / "runs/tiny-custom-0001/eval/custom.json").read_text())
    assert {row["name"] for row in scores["baselines"]} == {"majority class", "bag of words"}
    assert (yard / "runs/tiny-custom-0001/eval/custom-predictions.jsonl").is_file()


def test_the_resolved_recipe_is_a_recipe_with_absolute_paths(yard: Path) -> None:
    path = yard / "runs" / "tiny-0001" / "resolved.yaml"
    recipe = load_recipe(path).recipe
    assert recipe.pretrain is not None
    assert recipe.pretrain.data.path == str((yard / "text.txt").resolve())
    assert yaml.safe_load(path.read_text())["name"] == "tiny"


def test_the_saved_model_announces_its_positions(yard: Path) -> None:
    settings = json.loads((yard / "runs/tiny-0001/model/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 64


def test_a_second_run_gets_the_next_number(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("pretrain", "tiny.yaml", "pretrain.loop.steps=1", "-q")
    assert (status, found["run"]) == (0, "runs/tiny-0002")
    assert found["steps"] == 1
    assert set(found["evaluation"]) == {"loss", "perplexity", "accuracy"}


def test_an_existing_run_is_not_overwritten(sortyard: Callable) -> None:
    for words in (("pretrain", "tiny.yaml"), ("finetune", "tiny.yaml", "--from", "runs/tiny-0001"), ("demo",)):
        status, found, _ = sortyard(*words, "--out", "runs/tiny-0001")
        assert status == 2
        assert "not empty" in found["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "tiny.yaml", "--data", "empty.txt"], "empty"),
        (["pretrain", "tiny.yaml", "--data", "no.txt"], "no such file"),
        (["pretrain", "tiny.yaml", "pretrain.data.path=task.jsonl", "pretrain.data.text_column=txt"], "'text'"),
        (["finetune", "tiny.yaml", "--from", "runs/none"], "no such folder"),
        (["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "--task", "rte"], "label"),
        (["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "--data", "bad.jsonl"], "bad.jsonl:2"),
        (["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "finetune.task.max_length=65"], "64 positions"),
        (["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "--data", "no.jsonl"], "no such file"),
        (["predict", "runs/tiny-custom-0001", "-i", "no.txt"], "no such file"),
        (["predict", "runs/tiny-custom-0001", "-i", "empty.txt"], "empty"),
        (["predict", "runs/tiny-0001", "-i", "text.txt"], "sequence-classification head"),
        (["predict", "runs/tiny-custom-0001", "-i", "task.jsonl", "--text-column", "txt"], "no column 'txt'"),
        (["predict", "runs/tiny-custom-0001", "-i", "bytes.txt"], "bytes.txt:2"),
        (["predict", "runs/tiny-custom-0001", "-i", "text.txt", "-o", "text.txt"], "left as it is"),
        (["eval", "runs/tiny-custom-0001/model"], "--task"),
        (["data", "prep", "text.txt", "--out", "runs"], "no prepared folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_unusable_input_is_named_and_creates_no_run(
    words: list[str], message: str, sortyard: Callable, yard: Path
) -> None:
    (yard / "empty.txt").write_text("")
    (yard / "bad.jsonl").write_text('{"text": "a cat", "label": "good"}\n{"text": "a dog", "label": null}\n' * 3)
    (yard / "bytes.txt").write_bytes(b"fine\n\xff\xfe\n")
    before = sorted((yard / "runs").iterdir())
    status, found, err = sortyard(*words)
    assert status == 2
    assert message in found["error"]
    assert "Traceback" not in err
    assert sorted((yard / "runs").iterdir()) == before


def test_resume_of_a_finished_run_changes_nothing(sortyard: Callable, yard: Path) -> None:
    weights = yard / "runs/tiny-custom-0001/model/model.safetensors"
    before = weights.read_bytes()
    status, found, _ = sortyard("resume", "runs/tiny-custom-0001")
    assert (status, found["steps"]) == (0, 4)
    assert weights.read_bytes() == before


def test_eval_repeats_the_runs_own_scores(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("eval", "runs/tiny-custom-0001")
    assert status == 0
    own = json.loads((yard / "runs/tiny-custom-0001/eval/custom.json").read_text())
    assert found["metrics"] == pytest.approx(own["metrics"])
    _, pretrained, _ = sortyard("eval", "runs/tiny-0001")
    records = [json.loads(line) for line in (yard / "runs/tiny-0001/metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert pretrained["evaluation"]["loss"] == pytest.approx(last["loss"])


def test_eval_on_other_data(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("eval", "runs/tiny-custom-0001", "--data", "task.jsonl")
    assert (status, found["examples"]) == (0, 80)
    status, found, _ = sortyard("eval", "runs/tiny-0001", "--data", "task.jsonl")
    assert (status, found["data"]) == (0, "task.jsonl")


def test_eval_numbers_the_classes_as_the_model_does(sortyard: Callable, yard: Path) -> None:
    (yard / "one.jsonl").write_text('{"text": "a cat sings", "label": "good"}\n')
    (yard / "other.jsonl").write_text('{"text": "a cat", "label": "good"}\n{"text": "a dog", "label": "fair"}\n')
    status, found, _ = sortyard("eval", "runs/tiny-custom-0001", "--data", "one.jsonl")
    assert (status, found["examples"], found["classes"]) == (0, 1, ["bad", "good"])
    status, found, _ = sortyard("eval", "runs/tiny-custom-0001", "--data", "other.jsonl")
    assert status == 2
    assert "other.jsonl:2" in found["error"]


def test_a_thousand_predictions_keep_their_order(sortyard: Callable, yard: Path) -> None:
    texts = [f"number {i} " + "cat " * (i % 30) for i in range(1000)]
    (yard / "lines.txt").write_text("\n".join(texts) + "\n")
    status, found, _ = sortyard("predict", "runs/tiny-custom-0001", "-i", "lines.txt", "-o", "out.jsonl")
    assert (status, found["predictions"]) == (0, 1000)
    rows = [json.loads(line) for line in (yard / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["index"] for row in rows] == list(range(1000))
    assert {row["label"] for row in rows} <= {"good", "bad"}
    (yard / "out.jsonl").unlink()


def test_interrupted_predictions_are_resumed(sortyard: Callable, yard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sortyard.evaluation.batching.WINDOW_TEXTS", 50)
    texts = [f"number {i} " + "dog " * (i % 20) for i in range(300)]
    words = ("predict", "runs/tiny-custom-0001", "-i", "long.txt", "-o", "long.jsonl")
    lines = [text.encode() for text in texts]
    (yard / "long.txt").write_bytes(b"\n".join([*lines[:220], b"\xff\xfe", *lines[221:]]) + b"\n")
    assert sortyard(*words)[0] == 2
    begun = yard / ".aside-long.jsonl"
    assert 50 <= len(begun.read_text().splitlines()) <= 200
    assert not (yard / "long.jsonl").exists()
    (yard / "long.txt").write_text("\n".join(texts) + "\n")
    status, found, _ = sortyard(*words)
    assert status == 2
    assert "--resume" in found["error"]
    note = yard / ".aside-long.jsonl.model"
    model = note.read_text()
    with begun.open("a") as file:
        file.write('{"index": 200, "te')  # torn by a power cut
    status, found, _ = sortyard(*words, "--resume")
    assert (status, found["predictions"]) == (0, 300)
    resumed = [json.loads(line) for line in (yard / "long.jsonl").read_text().splitlines()]
    assert [row["text"] for row in resumed] == texts
    assert [row["index"] for row in resumed] == list(range(300))
    assert not note.exists()
    (yard / "long.jsonl").rename(begun)
    note.write_text(model)
    (yard / "long.txt").write_text("\n".join(["another", *texts[1:]]) + "\n")
    status, found, _ = sortyard(*words, "--resume")
    assert status == 2
    assert ".aside-long.jsonl:1" in found["error"]
    begun.unlink()
    assert sortyard(*words, "--resume")[0] == 2
    assert sortyard("predict", "runs/tiny-custom-0001", "-i", "long.txt", "--resume")[0] == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl", '{"text": "a cat"}\n{"text": "a dog"}\n'),
        ("in.tsv", "id\ttext\n1\ta cat\n2\ta dog\n"),
        ("in.csv", 'id,text\n1,"a cat"\n2,a dog\n'),
        ("in.txt", "a cat\na dog"),
    ],
)
def test_every_input_format_gives_the_same_texts(name: str, content: str, sortyard: Callable, yard: Path) -> None:
    (yard / name).write_text(content)
    target = f"{name}.out"
    assert sortyard("predict", "runs/tiny-custom-0001", "-i", name, "-o", target)[0] == 0
    assert [json.loads(line)["text"] for line in (yard / target).read_text().splitlines()] == ["a cat", "a dog"]
    (yard / target).unlink()


def test_predictions_through_a_pipe(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"text": "a cat"}\n{"text": "a dog"}\n'))
    monkeypatch.setattr(sys, "stdin", stdin)
    status, found, _ = sortyard("predict", "runs/tiny-custom-0001")
    assert (status, found["predictions"]) == (0, 2)


def test_report_is_written_again(sortyard: Callable, yard: Path) -> None:
    page = yard / "runs/tiny-0001/report.html"
    page.unlink()
    assert sortyard("report", "runs/tiny-0001")[0] == 0
    assert page.stat().st_size < 6_000_000


def test_prepared_data_trains_the_same_model(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("data", "prep", "text.txt", "--out", "prepared", "--vocab-size", "400")
    assert (status, found["documents"]) == (0, 120)
    assert sortyard("data", "prep", "text.txt", "--out", "prepared", "--vocab-size", "400")[0] == 0
    status, found, _ = sortyard("pretrain", "tiny.yaml", "--data", "prepared", "--out", "runs/prepared", "-q")
    assert status == 0
    weights = "model/model.safetensors"
    assert (yard / "runs/prepared" / weights).read_bytes() == (yard / "runs/tiny-0001" / weights).read_bytes()


def test_peek_shows_masks_and_boundaries(sortyard: Callable) -> None:
    status, found, _ = sortyard("data", "peek", "runs/tiny-0001", "-n", "2", "--length", "64")
    assert (status, len(found["samples"])) == (0, 2)
    row = found["samples"][0]
    assert row["tokens"][0] == "[CLS]"
    assert len(row["tokens"]) == len(row["labels"]) == row["boundaries"][-1] <= 64
    assert "[MASK:" in row["shown"]
    assert any(label is not None for label in row["labels"])
    status, found, _ = sortyard("data", "peek", "task.jsonl", "-n", "1")
    assert found["samples"][0]["row"].endswith("task.jsonl:1")


def test_from_scratch_and_from_another_librarys_model(sortyard: Callable, yard: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(yard / "runs/tiny-0001/model")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(yard / "bert")
    tokenizer.save_pretrained(yard / "bert")
    for start in ("scratch", "bert"):
        words = ("finetune", "tiny.yaml", "--from", start, "--out", f"runs/from-{start}", "-q", "--seed", "5")
        status, found, _ = sortyard(*words)
        assert status == 0
        assert found["task"] == "custom"
        assert sortyard("finetune", "tiny.yaml", "--from", start, "--dry-run")[0] == 0
        model = AutoModelForSequenceClassification.from_pretrained(yard / f"runs/from-{start}/model")
        assert model.config.id2label == {0: "bad", 1: "good"}


def test_a_causal_model(sortyard: Callable) -> None:
    words = ("pretrain.objective=causal_lm", "model.context=running_mean", "--out", "runs/causal", "-q")
    status, found, _ = sortyard("pretrain", "tiny.yaml", *words)
    assert status == 0
    assert sortyard("eval", "runs/causal")[1]["evaluation"]["loss"] == pytest.approx(found["evaluation"]["loss"])


def test_push_shows_a_runs_files_and_its_scores(sortyard: Callable, yard: Path) -> None:
    status, found, _ = sortyard("push", "runs/tiny-custom-0001", "--repo", "me/tiny", "--dry-run")
    assert status == 0
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
    scores = json.loads((yard / "runs/tiny-custom-0001/eval/custom.json").read_text())["metrics"]
    card = ModelCard(found["card"])
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == pytest.approx(scores, abs=1e-6)
