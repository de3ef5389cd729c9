"""`new`, `config`, `doctor` and the plans of `--dry-run`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.jobs import checkup
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.recipe import load_recipe, shipped_recipes

NAMES = [recipe.name for recipe in shipped_recipes()]
ONLY_PRETRAIN = ("experts-laptop", "sparsity-laptop", "twin-laptop")
VERBS_OF = {"adapt": {"adapt"}} | {name: {"pretrain"} for name in ONLY_PRETRAIN}  # the others fine-tune, too
DENSE = ("sparsity-laptop",)  # `study sparsity` takes its attention apart


def test_new_writes_a_recipe_that_passes_the_check(sortyard: Callable, tmp_path: Path) -> None:
    assert sortyard("new", "mine.yaml", "--from", "demo", "model.num_experts=16").status == 0
    assert sortyard("config", "check", "mine.yaml").status == 0
    recipe = load_recipe(tmp_path / "mine.yaml").recipe
    assert (recipe.name, recipe.model.num_experts) == ("mine", 16)


def test_new_never_overwrites(sortyard: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    assert sortyard("new", "mine.yaml").status == 2
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    assert sortyard("new", "no/such/mine.yaml").status == 2


def test_check_shows_the_resolved_recipe(sortyard: Callable) -> None:
    ended = sortyard("config", "check", "small", "--show", "seed=7")
    assert "seed: 7\n" in ended.out
    assert "lr: 0.0005" in ended.out


@pytest.mark.parametrize(
    "words",
    [
        ["config", "check"],
        ["config", "check", "small", "base"],
        ["config", "check", "no.yaml"],
        ["pretrain"],
        ["pretrain", "small", "pretrain.loop.lrr=3", "--dry-run"],
        ["finetune"],
        ["finetune", "--task", "sst3"],
        ["finetune", "--task", "custom"],
        ["finetune", "--task", "sst2"],
        ["resume", "nothing"],
        ["eval", "nothing"],
        ["report", "nothing"],
        ["predict", "nothing"],
        ["data", "prep", "nothing.txt", "--out", "x"],
        ["data", "peek", "nothing"],
    ],
    ids=" ".join,
)
def test_unusable_input_creates_nothing(words: list[str], sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard(*words, "--json")
    assert ended.status == 2
    assert ended.json["exit_status"] == 2
    assert ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def some_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that adapting can start from."""
    options = ModelOptions(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("model")
    model = build_model(options, head="masked_lm", vocab_size=50, tokenizer_ids={"pad_token_id": 0}, seed=0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_builds(name: str, sortyard: Callable, some_model: str, tmp_path: Path) -> None:
    verbs = {"pretrain": ["pretrain"], "finetune": ["finetune"], "adapt": ["adapt", some_model]}
    ended = {verb: sortyard(*words, name, "--dry-run", "--json") for verb, words in verbs.items()}
    assert {verb for verb, end in ended.items() if end.status == 0} == VERBS_OF.get(name, {"pretrain", "finetune"})
    for verb, end in ended.items():
        if end.status:
            assert (end.status, f"has no section {verb}" in end.json["error"]) == (2, True)
            continue
        (plan,) = end.json["plan"]
        assert 0 < plan["active_parameters"] <= plan["parameters"]
        assert (plan["active_parameters"] == plan["parameters"]) == (name in DENSE)
        assert plan["memory_bytes"] > 8 * plan["parameters"]
        if verb != "finetune":
            assert plan["tokens"] == plan["steps"] * plan["samples_per_step"] * plan["sequence_length"]
    assert list(tmp_path.iterdir()) == []


def test_the_seeds_step_has_32768_rows(sortyard: Callable) -> None:
    (plan,) = sortyard("pretrain", "seed", "--dry-run", "--json").json["plan"]
    assert (plan["samples_per_step"], plan["micro_batches"]) == (32768, [8, 4096])


def test_a_dry_run_reads_well(sortyard: Callable) -> None:
    ended = sortyard("demo", "--dry-run")
    for word in ("parameters", "active", "memory", "steps", "nothing was started", "hidden_size"):
        assert word in ended.out


def test_doctor_finds_this_machine_fit(sortyard: Callable) -> None:
    ended = sortyard("doctor", "--json")
    assert ended.status == 0
    assert ended.json["fit"] is True
    assert {"python", "torch", "transformers", "memory", "disk"} <= {item["name"] for item in ended.json["findings"]}


def test_doctor_ends_with_1_on_a_blocking_finding(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = checkup.Finding("torchvision", "blocking", "0.28.0 fails", "pip uninstall torchvision")
    monkeypatch.setattr(checkup, "examine", lambda folder: iter([broken]))
    ended = sortyard("doctor")
    assert ended.status == 1
    assert "pip uninstall torchvision" in ended.out


def test_doctor_names_a_version_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.0", "typer": "99.0"}
    monkeypatch.setattr(checkup.metadata, "requires", lambda name: ["torch>=2.11,<2.14", "typer>=0.15", "nothing>=1"])
    real = checkup.metadata.version

    def version(name: str) -> str:
        return versions[name] if name in versions else real(name)

    monkeypatch.setattr(checkup.metadata, "version", version)
    found = {finding.name: finding for finding in checkup._packages()}
    assert (found["torch"].level, found["typer"].level, found["nothing"].level) == ("blocking", "ok", "blocking")
    assert "pip install 'torch<2.14,>=2.11'" in found["torch"].advice


def test_doctor_detects_a_broken_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkup.metadata, "version", lambda name: "0.28.0")
    finding = checkup._torchvision()
    assert finding.level == "blocking"
    assert "nms" in finding.found
