"""`push`: files and card as a hub should have them; the hub itself is played by a recorder."""

import json
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoModelForSequenceClassification

from sortyard.interop.upcycling import checkpoint
from tests.cli.test_upcycle import write_dense
from tests.interop.saved import save
from tests.reports.conftest import add_evaluation, fill

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


class Hub:
    """Records what an upload asks of the hub, and keeps what it is given."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.calls: list[tuple[str, Any]] = []
        self.is_private = False
        self.refuses: Exception | None = None

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        signature(HfApi.create_repo).bind(self, repo_id, **settings)  # the hub's client would take it
        self.calls.append(("create_repo", (repo_id, settings)))
        if self.refuses is not None:
            raise self.refuses
        return f"https://hub.example/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        self.calls.append(("model_info", repo_id))
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, *, repo_id: str, folder_path: str, **settings: Any) -> None:
        signature(HfApi.upload_folder).bind(self, repo_id=repo_id, folder_path=folder_path, **settings)
        self.calls.append(("upload_folder", repo_id))
        shutil.copytree(folder_path, self.kept)  # links become what they point to


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "uploaded")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save("sequence_classification", tmp_path / "plain")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "runs" / "task-0001", name="mine-task", steps=300, start=1.4, end=0.6)
    add_evaluation(folder)
    save("sequence_classification", folder.model)
    (folder.model / "notes.txt").write_text("mine alone")
    return folder.path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_network")
def test_dry_run_of_a_run_shows_files_and_the_measured_card(sortyard: Callable, run: Path) -> None:
    before = contents(run)
    ended = sortyard("push", str(run), "--repo", "me/sparse", "--license", "mit", "--dry-run", "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert set(found["files"]) == FILES
    weights = run / "model" / "model.safetensors"
    assert found["files"]["model.safetensors"] == weights.stat().st_size
    assert found["bytes"] == sum(found["files"].values())
    assert (found["left_out"], found["address"]) == (["notes.txt"], None)
    card = ModelCard(found["card"])
    assert (card.data.license, card.data.library_name) == ("mit", "sortyard")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.model_name == "mine-task"
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {"accuracy": 0.712, "f1_macro": 0.7}
    for words in (
        'name = "me/sparse"', "95 % interval of accuracy: 65.3 % to 76.4 %", "from modules.tsv", "in 300 steps",
        "Tokens seen: 614k", "Device: cpu (A processor, 2 cores)", "50k parameters, 22.3k of them active",
    ):  # fmt: skip
        assert words in card.text
    assert contents(run) == before
    shown = sortyard("push", str(run), "--repo", "me/sparse", "--dry-run")
    assert f"{weights.stat().st_size:,}  model.safetensors" in shown.out
    assert "left out: notes.txt" in shown.out
    assert "# mine-task" in shown.out


@pytest.mark.usefixtures("no_network")
def test_a_demos_card_tells_of_both_its_runs(sortyard: Callable, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    fill(demo / "pretrain", name="demo", steps=900, start=8.1, end=3.9)
    tuned = fill(demo / "finetune", name="demo", steps=300, start=1.4, end=0.6)
    add_evaluation(tuned)
    save("sequence_classification", tuned.model)
    (demo / "demo.yaml").write_text("extends: demo\n")
    whole, last = (
        ModelCard(sortyard("push", str(path), "--repo", "me/x", "--dry-run", "--json").json["card"])
        for path in (demo, tuned.path)
    )
    assert "Pretrained on: docs.jsonl" in whole.text
    assert "in 1,200 steps" in whole.text
    assert "Pretrained on" not in last.text
    assert whole.data.eval_results == last.data.eval_results


@pytest.mark.usefixtures("no_network")
def test_what_is_not_known_is_not_claimed(sortyard: Callable, model: Path) -> None:
    found = sortyard("push", str(model), "--repo", "me/plain", "--dry-run", "--json").json
    card = ModelCard(found["card"])
    assert (card.data.license, card.data.base_model, card.data.eval_results) == (None, None, None)
    assert "No scores are known" in card.text


@pytest.mark.usefixtures("no_network")
def test_scores_of_the_runs_own_end_come_before_later_ones(sortyard: Callable, run: Path) -> None:
    again = json.loads((run / "eval" / "custom.json").read_text()) | {"metrics": {"accuracy": 0.1, "f1_macro": 0.1}}
    (run / "eval" / "custom-again.json").write_text(json.dumps(again | {"baselines": []}))
    card = ModelCard(sortyard("push", str(run), "--repo", "me/x", "--dry-run", "--json").json["card"])
    assert card.data.eval_results[0].metric_value == 0.712


@pytest.mark.usefixtures("no_network")
def test_a_public_task_has_the_hubs_name(sortyard: Callable, run: Path) -> None:
    path = run / "eval" / "custom.json"
    result = json.loads(path.read_text()) | {"task": "stsb", "type": "regression", "main_metric": "pearson"}
    scores = {"pearson": 0.8, "spearman": float("nan")}
    path.write_text(json.dumps(result | {"metrics": scores, "baselines": [], "interval": None}))
    card = ModelCard(sortyard("push", str(run), "--repo", "me/x", "--dry-run", "--json").json["card"])
    (one,) = card.data.eval_results
    assert (one.dataset_type, one.dataset_config, one.metric_type) == ("nyu-mll/glue", "stsb", "pearsonr")


@pytest.mark.parametrize("source", ["org/dense", "dense"], ids=["hub", "folder"])
def test_an_upcycled_model_names_the_checkpoint_that_the_hub_knows(
    source: str, sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dense(tmp_path / "dense")
    monkeypatch.setattr(checkpoint, "_place_of", lambda _: str(tmp_path / "dense"))  # in place of a download
    assert sortyard("upcycle", source, "--out", "sparse").status == 0
    found = sortyard("push", "sparse", "--repo", "me/sparse", "--dry-run", "--json").json
    card = ModelCard(found["card"])
    assert card.data.base_model == ("org/dense" if source == "org/dense" else None)
    assert "Largest difference from the checkpoint" in card.text
    assert found["left_out"] == ["upcycling.json"]  # it may name a folder of this machine


def test_what_is_uploaded_is_the_model(sortyard: Callable, run: Path, hub: Hub) -> None:
    ended = sortyard("push", str(run / "model"), "--repo", "me/sparse")
    assert ended.status == 0, ended.err
    assert hub.calls == [
        ("create_repo", ("me/sparse", {"private": None, "exist_ok": True})),
        ("upload_folder", "me/sparse"),
    ]
    assert {path.name for path in hub.kept.iterdir()} == FILES
    assert ended.out.startswith("https://hub.example/me/sparse: 5 files")
    assert "71.2 %" in (hub.kept / "README.md").read_text()
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in (run / "model", hub.kept)]
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        mine, theirs = (one.eval()(ids).logits for one in models)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("is_private", [True, False], ids=["new", "public-already"])
def test_private_is_never_published(is_private: bool, sortyard: Callable, model: Path, hub: Hub) -> None:
    hub.is_private = is_private
    ended = sortyard("push", str(model), "--repo", "me/secret", "--private")
    assert hub.calls[0] == ("create_repo", ("me/secret", {"private": True, "exist_ok": True}))
    assert hub.kept.exists() == is_private
    assert ended.status == (0 if is_private else 2)
    assert is_private or "is public" in ended.err


def refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("no such right", response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (refusal(403), 2, "hf auth login"),
        (refusal(500), 2, "the hub refuses: no such right"),
        (OfflineModeIsEnabled("offline mode is enabled"), 2, "cannot be reached (offline mode is enabled)"),
        (type("ConnectError", (Exception,), {"__module__": "httpx"})("no route"), 2, "cannot be reached (no route)"),
        (KeyError("a bug"), 1, "not your input's fault"),
    ],
    ids=["forbidden", "server", "offline", "network", "bug"],
)
def test_what_becomes_of_a_failed_upload(
    error: Exception, status: int, words: str, sortyard: Callable, model: Path, hub: Hub
) -> None:
    hub.refuses = error
    ended = sortyard("push", str(model), "--repo", "me/x")
    assert ended.status == status
    assert words in ended.err
    assert not hub.kept.exists()


def test_without_login_or_network_nothing_is_asked_of_the_hub(
    sortyard: Callable, model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    ended = sortyard("push", str(model), "--repo", "me/x")
    assert ended.status == 2
    assert "nobody is logged in" in ended.err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in sortyard("push", str(model), "--repo", "me/x").err
    assert hub.calls == []


@pytest.mark.usefixtures("no_network")
def test_a_folders_own_card_is_kept(sortyard: Callable, model: Path) -> None:
    (model / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# My words\n")
    words = ("push", str(model), "--repo", "me/x", "--dry-run", "--json")
    assert sortyard(*words).json["card"] == (model / "README.md").read_text()
    card = ModelCard(sortyard(*words, "--license", "apache-2.0", "--base-model", "org/dense").json["card"])
    assert (card.data.license, card.data.language, card.data.base_model) == ("apache-2.0", "en", "org/dense")
    assert "# My words" in card.text


@pytest.mark.usefixtures("no_network")
def test_shards_and_code_go_along(sortyard: Callable, model: Path) -> None:
    whole = AutoModelForSequenceClassification.from_pretrained(model)
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="40KB")
    (model / "modeling.py").write_text("import sortyard\n")
    words = ("push", str(model), "--repo", "me/x", "--dry-run", "--json")
    found = sortyard(*words).json
    shards = {path.name for path in model.glob("*.safetensors")}
    assert len(shards) > 2
    assert shards | {"model.safetensors.index.json"} <= set(found["files"])
    assert found["left_out"] == ["modeling.py"]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))
    assert "modeling.py" in sortyard(*words).json["files"]
    (model / min(shards)).unlink()
    assert f"names {min(shards)}, which is not there" in sortyard(*words).json["error"]
