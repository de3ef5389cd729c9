"""What `push` refuses, without a network: pickles, damaged files, names that are none, folders that lack something."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.saved import save

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save("sequence_classification", tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pytorch_model.bin", b"\x80\x04N.", "is a pickle"),
        ("training_args.bin", b"\x80\x04N.", "is a pickle"),
        ("model.safetensors", b"\x80\x04N.", "is no safetensors file"),
        ("vocab.txt", b"\x80\x04N.", "must be text"),
        ("tokenizer.json", b"{", "is not JSON"),
        ("config.json", b"[]", "must hold one JSON object"),
        ("README.md", b"---\na: [\n---\n", "the header between"),
        ("README.md", b"---\n- a\n---\n", "the header between"),
        ("README.md", b"---\nmodel-index: 3\n---\n", "the header between"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    name: str, content: bytes, message: str, sortyard: Callable, model: Path
) -> None:
    (model / name).write_bytes(content)
    ended = sortyard("push", str(model), "--repo", "me/x", "--dry-run")
    assert ended.status == 2
    assert str(model / name) in ended.err
    assert message in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo", "alone"], "--repo alone: write OWNER/NAME"),
        (["--repo", "a/b/c"], "--repo a/b/c"),
        (["--repo", "me/a--b"], "--repo me/a--b"),
        (["--repo", "me/x", "--base-model", "/home/me/dense"], "--base-model /home/me/dense"),
        (["--repo", "me/x", "--license", "Apache 2"], "--license Apache 2"),
    ],
    ids=["alone", "three", "dashes", "base-model", "license"],
)
def test_a_bad_name_is_refused(words: list[str], message: str, sortyard: Callable, model: Path) -> None:
    ended = sortyard("push", str(model), *words, "--dry-run")
    assert ended.status == 2
    assert message in ended.err


@pytest.mark.parametrize(("pattern", "message"), [("*.safetensors", "no weights"), ("tokenizer*", "no tokenizer")])
def test_a_folder_that_lacks_something_is_refused(pattern: str, message: str, sortyard: Callable, model: Path) -> None:
    for path in model.glob(pattern):
        path.unlink()
    ended = sortyard("push", str(model), "--repo", "me/x", "--dry-run")
    assert ended.status == 2
    assert message in ended.err
