"""Texts that are prepared with the tokenizer of a model, or before."""

from pathlib import Path

import pytest

from sortyard.data.options import CorpusOptions
from sortyard.errors import InputError
from sortyard.jobs.corpora import TOKENIZER, other_text, prepare_folder, prepare_for
from sortyard.jobs.display import Display


def _prepared(folder: Path, *, words: str, tokenizer: Path | None = None) -> Path:
    source = folder.with_suffix(".txt")
    source.write_text("\n".join(f"{words} {number}" for number in range(200)))
    prepare_folder(str(source), out=folder, vocab_size=300, tokenizer=tokenizer, text_column="text", display=Display())
    return folder


def test_text_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    own, other = _prepared(tmp_path / "own", words="the cat sat"), _prepared(tmp_path / "other", words="a dog ran far")
    options = CorpusOptions(path=str(other), sequence_length=16, validation_fraction=0.0)
    with pytest.raises(InputError, match="was prepared with another tokenizer"):
        prepare_for(own / TOKENIZER, options, folder=tmp_path / "w", seed=0, display=Display())
    same = options.model_copy(update={"path": str(own)})
    assert len(prepare_for(own / TOKENIZER, same, folder=tmp_path / "w", seed=0, display=Display()).rows)


def test_a_folder_that_was_begun_keeps_its_tokenizer_and_says_so(tmp_path: Path) -> None:
    own, other = _prepared(tmp_path / "own", words="the cat sat"), _prepared(tmp_path / "other", words="a dog ran far")
    with pytest.raises(InputError, match="was begun with another tokenizer"):
        _prepared(own, words="the cat sat", tokenizer=other / TOKENIZER)
    _prepared(own, words="the cat sat", tokenizer=own / TOKENIZER)


def test_another_text_is_read_whole_and_in_its_own_format(tmp_path: Path) -> None:
    own = CorpusOptions(path="mine.jsonl", format="jsonl", max_documents=5, validation_fraction=0.2, text_column="body")
    other = other_text(own, "theirs.txt")
    assert (other.path, other.format, other.max_documents, other.validation_fraction) == ("theirs.txt", "auto", None, 0)
    assert other.text_column == "body"
