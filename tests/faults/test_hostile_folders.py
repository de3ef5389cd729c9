"""Model folders made to harm: nothing of them is run, and none takes the machine's memory or time."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sortyard.cli.main import main
from sortyard.data.glue import TASKS
from sortyard.errors import InputError
from sortyard.interop import Predictor, folder_checks
from sortyard.jobs.folders import model_folder
from sortyard.jobs.loading import find_start, load_classifier, load_start_tokenizer
from tests.evaluation.tiny import make_bert, make_tokenizer
from tests.faults.test_bad_folders import change_config
from tests.training.test_pieces import HOSTILE

SECONDS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    make_bert(num_labels=2).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


class Canary:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path) -> bytes:
    import pickle

    return pickle.dumps(Canary(mark))


def load(folder: Path) -> None:
    """Every way into a folder."""
    start = find_start(str(folder))
    load_start_tokenizer(start)
    load_classifier(start, task=TASKS["sst2"], seed=0)
    Predictor.from_pretrained(folder)


def test_a_sound_folder_loads(folder: Path) -> None:
    load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl", "a.pickle"])
def test_a_pickle_beside_the_weights_is_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(pickled(tmp_path / "mark"))
    load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "index"])
def test_a_pickle_for_weights_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    content = pickled(tmp_path / "mark")
    weights = load_file(folder / "model.safetensors")
    if name != "adapter_model.bin":
        (folder / "model.safetensors").unlink()
    if name == "index":
        (folder / "weights.bin").write_bytes(content)
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError):
        load(folder)
    with pytest.raises(InputError):
        Predictor.from_pretrained(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "weights.bin", 7]
)
def test_an_index_leads_nowhere_else(folder: Path, name: object) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: names"):
        model_folder(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 2**24, "hidden_size": 2**24},
        {"max_position_embeddings": 10**15},
        {"intermediate_size": -(10**12)},
    ],
    ids=str,
)
def test_a_configuration_cannot_ask_for_all_memory(folder: Path, values: dict[str, int]) -> None:
    change_config(folder, **values)
    with pytest.raises(InputError, match=r"config\.json: .*refused|is more than"):
        model_folder(folder)
    with pytest.raises(InputError):
        Predictor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("depth", [100, 100_000])
def test_nesting_is_bounded(folder: Path, name: str, depth: int) -> None:
    text = (folder / name).read_text() if (folder / name).exists() else "{}"
    comma = "," if len(text) > 2 else ""
    (folder / name).write_text('{"x": ' + "[" * depth + "]" * depth + comma + text[1:])
    with pytest.raises(InputError, match=f"{name}: is nested"):
        model_folder(folder)


def test_size_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_checks, "MAX_LARGE_BYTES", 100)
    with pytest.raises(InputError, match=r"tokenizer\.json: has [\d,]+ bytes; more than 100 are refused"):
        model_folder(folder)


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path, known: bool) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    names = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    change_config(folder, auto_map=names, **({} if known else {"model_type": "evil"}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    began = time.monotonic()
    try:
        load(folder)
    except InputError:
        assert not known
    assert not (tmp_path / "mark").exists()
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=str(folder)):
        load_classifier(str(folder), task=TASKS["sst2"], seed=0)
    with pytest.raises(InputError, match=str(folder)):
        Predictor.from_pretrained(folder)


def tokenizer_with(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(normalizer={"type": "Evil"}),
        lambda content: content.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
        lambda content: content["model"].update(vocab={"a": 2**64}),
        lambda content: content["model"].update(vocab=[]),
        lambda content: content.clear(),
    ],
    ids=["unknown part", "bad pattern", "huge number", "no vocabulary", "empty"],
)
def test_a_hostile_tokenizer_is_refused(folder: Path, change: Callable[[dict], object]) -> None:
    tokenizer_with(folder, change)
    with pytest.raises(InputError, match="no tokenizer can be loaded"):
        load_start_tokenizer(str(folder))
    with pytest.raises(InputError, match=str(folder)):
        Predictor.from_pretrained(folder)


def test_a_pattern_that_never_comes_to_an_end_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer_with(folder, lambda content: content.update(pre_tokenizer=split))
    (tmp_path / "in.txt").write_text("a" * 40 + "b\n")
    started = time.monotonic()
    assert main(["predict", str(folder), "-i", str(tmp_path / "in.txt"), "-q"]) == 2
    assert time.monotonic() - started < SECONDS
    assert "error: the tokenizer cannot be run on this text" in capsys.readouterr().err


def test_a_deep_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError, match="no tokenizer can be loaded"):
        load_start_tokenizer(str(folder))
