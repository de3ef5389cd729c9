"""What a pretraining run keeps of its text, and what becomes of it when text, shards or weights are gone or others."""

import json
import shutil
from pathlib import Path

import pytest

from sortyard.cli.main import main
from sortyard.errors import InputError
from sortyard.jobs.folders import discarded_if_untrained, next_folder
from sortyard.jobs.plan import pretraining_shapes
from sortyard.recipe import load_recipe
from sortyard.runs.folder import RunFolder
from sortyard.training import loop
from tests.faults.elastic import write_inputs

STOP = ["pretrain.loop.steps=4", "--json", "-q"]


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _pretrain(*words: str) -> int:
    return main(["pretrain", "tiny.yaml", *words, *STOP])


def _prepare(text: str, *, out: str) -> None:
    Path("own.txt").write_text(text)
    shutil.rmtree(out, ignore_errors=True)
    assert main(["data", "prep", "own.txt", "--out", out, "--vocab-size", "300", "-q"]) == 0


def test_shards_outlast_a_training_that_fails_at_once(
    yard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, **__: object) -> None:
        raise InputError("the loss stays non-finite")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", train)
        assert _pretrain("--out", "run") == 2
    err = capsys.readouterr().err
    assert "the loss stays non-finite. What is done is kept: when that is mended, continue with `sortyard resume" in err
    shards = sorted((yard / "run" / "data" / "shards").glob("*"))
    written = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) >= 3
    assert main(["resume", "run", "-q"]) == 0
    assert [path.stat().st_mtime_ns for path in shards] == written


def test_what_fails_before_a_shard_leaves_nothing(yard: Path) -> None:
    (yard / "text.txt").write_text("\n\n\n")
    assert _pretrain("--out", "run") == 2
    assert not (yard / "run").exists()


def test_a_linked_folder_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    run = RunFolder.create(tmp_path / "link", recipe="", resolved="", environment={})
    with pytest.raises(InputError, match=r"^the reason$"), discarded_if_untrained(run):
        raise InputError("the reason")
    assert list((tmp_path / "there").iterdir()) == []
    run = RunFolder.create(tmp_path / "link", recipe="", resolved="", environment={})
    assert run.path.is_dir()


def test_a_tokenizer_without_a_mask_is_refused_before_any_work(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _prepare("the cat sat on the mat\n" * 50, out="prepared")
    path = yard / "prepared" / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["mask_token"]
    path.write_text(json.dumps(config))
    words = ["tokenizer.path=prepared/tokenizer", "--out", "run"]
    assert _pretrain(*words) == 2
    assert "prepared/tokenizer has no mask token, which masked_lm needs" in capsys.readouterr().err
    assert not (yard / "run").exists()
    assert _pretrain(*words, "pretrain.objective=causal_lm", "model.context=running_mean") == 0


def test_a_finished_run_needs_its_text_no_more_and_gives_its_weights_again(
    yard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _pretrain("--out", "run", "pretrain.data.validation_fraction=0.1") == 0
    weights = yard / "run" / "model" / "model.safetensors"
    first = weights.read_bytes()
    (yard / "text.txt").unlink()
    weights.unlink()
    assert main(["resume", "run", "-q"]) == 0
    assert weights.read_bytes() == first
    assert main(["eval", "run", "-q"]) == 0
    assert len(RunFolder.open(yard / "run").finishes()) == 1

    shutil.rmtree(yard / "run" / "checkpoints")
    lines = (yard / "run" / "metrics.jsonl").read_bytes()
    assert main(["resume", "run", "-q"]) == 2
    assert "finished at step 4, and its checkpoints are gone" in capsys.readouterr().err
    assert (yard / "run" / "metrics.jsonl").read_bytes() == lines


def test_text_that_is_gone_before_all_is_prepared_is_missed(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _pretrain("--out", "run") == 0
    index = yard / "run" / "data" / "shards" / "index.json"
    index.write_text(index.read_text().replace('"complete": true', '"complete": false'))
    (yard / "text.txt").unlink()
    assert main(["resume", "run", "-q"]) == 2
    assert "text.txt: there is no such file" in capsys.readouterr().err


def test_a_run_goes_on_with_the_tokens_that_it_was_begun_with(yard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _prepare("the cat sat on the mat and then ran away\n" * 90, out="prepared")
    assert _pretrain("pretrain.data.path=prepared", "--out", "run") == 0
    kept = (yard / "prepared" / "tokenizer").rename(yard / "kept")
    shutil.rmtree("prepared")
    text = "the mat sat on the cat and then ran away\n" * 90
    Path("other.txt").write_text(text)
    assert main(["data", "prep", "other.txt", "--out", "prepared", "--tokenizer", str(kept), "-q"]) == 0
    more = ["resume", "run", "pretrain.loop.steps=6", "--allow", "pretrain.loop.steps", "-q"]
    assert main(more) == 2
    assert "its tokens are not those that run was begun with" in capsys.readouterr().err
    assert main([*more, "--allow", "pretrain.data.path"]) == 0
    assert main(["resume", "run", "-q"]) == 0  # now these are its own


def test_a_pattern_of_files_is_found_from_anywhere(yard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = yard / "a[1]"
    folder.mkdir()
    (folder / "one.txt").write_text((yard / "text.txt").read_text())
    shutil.copy("tiny.yaml", folder)
    monkeypatch.chdir(folder)
    assert _pretrain("pretrain.data.path='*.txt'", "--out", "run") == 0
    index = folder / "run" / "data" / "shards" / "index.json"
    index.write_text(index.read_text().replace('"complete": true', '"complete": false'))
    monkeypatch.chdir(yard)
    assert main(["resume", str(folder / "run"), "-q"]) == 0


def test_folders_of_any_name_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a[1]-0001").mkdir()
    assert next_folder("a[1]", below=tmp_path).name == "a[1]-0002"


def test_what_is_planned_has_the_vocabulary_that_is_there(yard: Path) -> None:
    _prepare("the cat sat on the mat\n" * 50, out="prepared")
    size = len(json.loads((yard / "prepared" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    for override in ("pretrain.data.path=prepared", "tokenizer.path=prepared/tokenizer"):
        recipe = load_recipe("tiny.yaml", overrides=[override]).recipe
        assert pretraining_shapes(recipe).config.vocab_size == size
    elsewhere = load_recipe("tiny.yaml", overrides=["tokenizer.path=not/here"]).recipe
    assert pretraining_shapes(elsewhere).config.vocab_size == 300
