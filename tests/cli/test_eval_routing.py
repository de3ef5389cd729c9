"""`eval --routing`: what it counts, on which text, what it keeps, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from sortyard.cli.main import main
from sortyard.evaluation.routing import utilisation
from sortyard.jobs.display import Display
from sortyard.jobs.routing import RoutingRequest, evaluate_routing
from sortyard.jobs.routing_texts import named_sources, spread
from sortyard.reports.run_data import read_run
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from tests.end_to_end.conftest import WORDS, write_inputs

ANIMALS, PLACES = WORDS[:8], WORDS[8:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretraining run of four checkpoints, a fine-tuning run, and two texts."""
    folder = tmp_path_factory.mktemp("routing")
    write_inputs(folder)
    for name, words in (("animals", ANIMALS), ("places", PLACES)):
        rows = ({"text": " ".join(words[(i * j) % len(words)] for j in range(20 + i))} for i in range(1, 30))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = ["loop.steps=8", "loop.checkpoint_every=2", "loop.keep_checkpoints=9", "optimizer.lr=0.01"]
    with chdir(folder):
        assert main(["pretrain", "tiny.yaml", *(f"pretrain.{one}" for one in kept), "-q"]) == 0
        assert main(["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "-q"]) == 0
    return folder


@pytest.fixture
def yard(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to, as the working folder of `sortyard`."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_on_its_own_rows(sortyard: Callable, yard: Path) -> None:
    ended = sortyard("eval", "runs/tiny-0001", "--routing", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert (found["num_experts"], found["num_experts_per_tok"], len(found["layers"])) == (4, 2, 2)
    assert found["masked"]
    assert found["headline"] == min(layer["utilisation"] for layer in found["layers"])
    for layer in found["layers"]:
        assert sum(layer["loads"]) == 2 * found["num_tokens"]
        assert layer["utilisation"] == pytest.approx(float(utilisation(layer["loads"])))
        assert any(piece["token"] == "[MASK]" for tokens in layer["top_tokens"] for piece in tokens)
    assert [domain["name"] for domain in found["domains"]] == ["held-out rows"]
    assert "only one domain" in " ".join(found["notes"])
    assert "only " in found["notes"][0]
    kept = json.loads((yard / "runs/tiny-0001/eval/routing.json").read_text())
    assert kept == {key: value for key, value in found.items() if key not in ("run", "file")}


def test_saturation_ends_at_one_and_knows_the_old_weights(sortyard: Callable, yard: Path) -> None:
    found = sortyard("eval", "runs/tiny-0001", "--routing", "--json").json
    points = found["saturation"]["checkpoints"]
    assert [point["step"] for point in points] == [2, 4, 6, 8]
    assert points[-1]["layers"] == [1.0, 1.0]  # the last checkpoint is the model
    assert all(0 < share < 1 for share in points[0]["layers"])
    (yard / "runs/tiny-0001/checkpoints/step-00000004/model.safetensors").write_bytes(b"damaged")
    ended = sortyard("eval", "runs/tiny-0001", "--routing", "--json")
    assert [point["step"] for point in ended.json["saturation"]["checkpoints"]] == [2, 6, 8]
    assert "does not match its digest" in ended.err


def test_named_texts_are_domains_of_their_own(sortyard: Callable, yard: Path) -> None:
    words = ["--data", "animals.jsonl", "--data", "elsewhere=places.jsonl"]
    found = sortyard("eval", "runs/tiny-0001", "--routing", *words, "--json").json
    assert [(one["name"], one["source"]) for one in found["domains"]] == [
        ("animals", "animals.jsonl"), ("elsewhere", "places.jsonl")
    ]  # fmt: skip
    for layer in found["layers"]:
        assert 0 < layer["specialisation"] <= found["domain_entropy"]
        parts = layer["domain_loads"].values()
        assert [sum(pair) for pair in zip(*parts, strict=True)] == layer["loads"]
    assert "one domain" not in " ".join(found["notes"])


def test_the_tables_say_what_the_json_says(sortyard: Callable, yard: Path) -> None:
    words = ["eval", "runs/tiny-0001", "--routing", "--data", "animals.jsonl", "--data", "places.jsonl"]
    found, shown = sortyard(*words, "--json").json, sortyard(*words).out
    first = shown.splitlines()[0]
    assert first.startswith(f"runs/tiny-0001: utilisation minimum over layers {found['headline']:.3f}")
    assert f"N = 4 experts, k = 2 a token, {found['num_tokens']:,} tokens, masked as in training" in shown
    for layer in found["layers"]:
        assert f"{layer['utilisation']:.3f}" in shown
        assert f"{layer['specialisation']:.3f}" in shown
    assert "U_H animals" in shown
    assert "note: only" in shown
    assert f"{100 * found['saturation']['checkpoints'][0]['layers'][0]:.1f} %" in shown


def test_a_fine_tuned_run_on_its_development_examples(sortyard: Callable, yard: Path) -> None:
    found = sortyard("eval", "runs/tiny-custom-0001", "--routing", "--json").json
    assert [domain["name"] for domain in found["domains"]] == ["development examples"]
    assert not found["masked"]
    assert found["saturation"]["checkpoints"][-1]["layers"] == [1.0, 1.0]
    other = sortyard("eval", "runs/tiny-custom-0001", "--routing", "--data", "animals.jsonl", "--json").json
    assert [domain["name"] for domain in other["domains"]] == ["animals"]


def test_a_model_folder_counts_what_counting_by_hand_counts(sortyard: Callable, yard: Path) -> None:
    model, text = "runs/tiny-0001/model", "the cat sat on a mat"
    (yard / "one.txt").write_text(text + "\n")
    found = sortyard("eval", model, "--routing", "--data", "one.txt", "--json").json
    assert (found["file"], found["masked"], found["saturation"]) == (None, False, None)
    tokens = AutoTokenizer.from_pretrained(yard / model)(text, return_tensors="pt")
    with torch.no_grad():
        loads = AutoModelForMaskedLM.from_pretrained(yard / model).eval()(**tokens, output_statistics=True).expert_loads
    assert [layer["loads"] for layer in found["layers"]] == loads.long().tolist()
    assert found["num_tokens"] == tokens["input_ids"].numel()
    refused = sortyard("eval", model, "--routing")
    assert (refused.status, "--data" in refused.err) == (2, True)


def test_only_a_part_of_a_long_text_is_read_and_it_is_said(sortyard: Callable, yard: Path) -> None:
    ended = sortyard("eval", "runs/tiny-0001", "--routing", "--data", "text.txt", "--max-tokens", "1000", "--json")
    domain = ended.json["domains"][0]
    assert 800 < domain["tokens"] < 1200 < domain["of_tokens"]
    assert f"{domain['tokens']:,} tokens of {domain['of_tokens']:,}" in ended.err


def test_the_report_shows_it_and_the_run_stays_a_pretraining_run(sortyard: Callable, yard: Path) -> None:
    assert sortyard("eval", "runs/tiny-0001", "--routing", "--data", "animals.jsonl", "--data", "text.txt").status == 0
    phase = read_run(yard / "runs/tiny-0001").final
    assert not phase.is_finetuning
    assert sortyard("report", "runs/tiny-0001").status == 0
    page = (yard / "runs/tiny-0001/report.html").read_text()
    for words in ("Use of the experts on animals", "When the routing settled", "Pretraining run"):
        assert words in page


def test_other_text_columns(sortyard: Callable, yard: Path) -> None:
    rows = ({"body": "the cat sat on a mat"} for _ in range(9))
    (yard / "mails.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "runs/tiny-0001", "--routing", "--data", "mails.jsonl"]
    assert "'text'" in sortyard(*words).err
    assert sortyard(*words, "--text-column", "body").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--routing", "--task", "sst2"], "--routing reads text"),
        (["--routing", "--text-column", "body"], "--data"),
        (["--routing", "--data", "no.txt"], "no such file"),
        (["--routing", "--data", "animals.jsonl", "--data", "animals=text.txt"], "two texts are called 'animals'"),
        (["--routing", "--data", "=text.txt"], "no name"),
        (["--max-tokens", "5"], "only for --routing"),
        (["--text-column", "body"], "for several --data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused(words: list[str], message: str, sortyard: Callable, yard: Path) -> None:
    ended = sortyard("eval", "runs/tiny-0001", *words)
    assert ended.status == 2
    assert message in ended.err
    assert not (yard / "runs/tiny-0001/eval/routing.json").exists()


def test_models_without_experts_are_refused(sortyard: Callable, yard: Path) -> None:
    BertForMaskedLM(
        BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(yard / "bert")
    dense = yard / "runs/tiny-0001/model/config.json"
    for model in ("bert", "runs/tiny-0001"):
        ended = sortyard("eval", model, "--routing", "--data", "text.txt")
        assert ended.status == 2
        assert "no routing to evaluate" in ended.err
        dense.write_text(json.dumps(json.loads(dense.read_text()) | {"num_experts": 1}))


def test_a_run_that_trains_is_left_alone(yard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    monkeypatch.chdir(yard)
    monkeypatch.setattr("sortyard.jobs.routing.run_lock", lambda path: entered.append(path) or run_lock(path))
    evaluate_routing(Path("runs/tiny-0001"), request=RoutingRequest(max_tokens=100), display=Display())
    assert entered == [RunFolder.open("runs/tiny-0001").path]


def test_names_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").touch()
    found = named_sources(["books/novels.parquet", "mail=~/news", "owner/name", "a=b.txt", "folder/"])
    home = str(Path("~").expanduser())
    assert found == {
        "novels": "books/novels.parquet", "mail": f"{home}/news", "name": "owner/name", "a=b": "a=b.txt",
        "folder": "folder/",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "tokens", "chosen"), [(10, 1000, list(range(10))), (10, 500, [0, 2, 4, 6, 8]), (10, 1, [0])]
)
def test_rows_are_spread_over_the_text(count: int, tokens: int, chosen: list[int]) -> None:
    assert spread(count, mean_tokens=100.0, max_tokens=tokens) == chosen
