"""Tokenizers: reproducible, with BERT's templates, and refused in one sentence where they cannot be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sortyard.errors import InputError
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.sampling import sample_texts
from sortyard.tokenizer.train import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

ALGORITHMS = ["wordpiece", "bpe"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    parts = ["sor", "ti", "ng", "lo", "gs", "ya", "rd", "mi", "ll"]
    return [" ".join("".join(generator.choice(parts, size=3)) for _ in range(40)) + ", Caf\u00e9!" for _ in range(50)]


def train(texts: Any, algorithm: str, **options: Any) -> Any:
    return train_tokenizer(texts, TokenizerOptions(algorithm=algorithm, **{"vocab_size": 400, **options}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_text_gives_the_same_tokenizer(texts: list[str], algorithm: str) -> None:
    first = train(texts, algorithm).backend_tokenizer.to_str()
    assert all(train(iter(texts), algorithm).backend_tokenizer.to_str() == first for _ in range(3))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_templates_and_size(texts: list[str], algorithm: str) -> None:
    tokenizer = train(texts, algorithm, model_max_length=77)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert len(tokenizer) <= 400
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert tokenizer.model_max_length == 77
    pair = tokenizer("logs", "mill", return_token_type_ids=True)
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert [token for token in tokens if token in SPECIAL_TOKENS] == ["[CLS]", "[SEP]", "[SEP]"]
    second = tokens.index("[SEP]") + 1
    assert pair["token_type_ids"] == [0] * second + [1] * (len(tokens) - second)
    assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_comes_back_from_its_ids(texts: list[str], algorithm: str) -> None:
    tokenizer = train(texts, algorithm, lowercase=False)
    text = texts[3].removesuffix(", Caf\u00e9!")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_tokenizer_loads_as_the_same(texts: list[str], algorithm: str, tmp_path: Path) -> None:
    tokenizer = train(texts, algorithm)
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert loaded(texts[1])["input_ids"] == tokenizer(texts[1])["input_ids"]
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.mask_token_id == 4
    assert "token_type_ids" not in loaded("x")


def test_continuations_in_running_text_are_ordinary_text(texts: list[str]) -> None:
    tokenizer = train(texts, "wordpiece")
    assert tokenizer.tokenize("##s")[:1] == ["[UNK]"]
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_lowercase_is_optional(texts: list[str]) -> None:
    assert train(texts, "wordpiece").tokenize("LOGS") == train(texts, "wordpiece").tokenize("logs")
    cased = train(texts, "wordpiece", lowercase=False)
    assert cased.tokenize("LOGS") != cased.tokenize("logs")


def test_a_large_alphabet_does_not_exceed_the_vocabulary() -> None:
    texts = ["".join(chr(0x0400 + (7 * row + place) % 900) for place in range(30)) for row in range(400)]
    assert len(train(texts, "wordpiece", vocab_size=300)) <= 300


def test_the_alphabet_of_chinese_is_not_cut_to_that_of_letters() -> None:
    characters = [chr(0x4E00 + number) for number in range(3000)]
    texts = ["".join(characters[first : first + 50]) for first in range(0, 3000, 50)] * 2
    told: list[str] = []
    options = TokenizerOptions(vocab_size=16_000)
    tokenizer = train_tokenizer(texts, options, say=told.append)
    assert set(characters) <= set(tokenizer.get_vocab())
    assert not told
    few = train_tokenizer(texts, options.model_copy(update={"vocab_size": 8000}), say=told.append)
    assert len(set(characters) & set(few.get_vocab())) == 2000
    (line,) = told
    assert line.startswith("tokenizer leaves out the 1,000 rarest characters, 33 % of the text: ")
    assert "a larger tokenizer.vocab_size" in line


def test_only_the_rarest_signs_are_left_out_of_a_large_alphabet() -> None:
    signs = [chr(0x4E00 + number) for number in range(1200)]
    told: list[str] = []
    texts = ["plain words " * 300 + " ".join(signs)] * 100 + ["\u9f98"]
    tokenizer = train_tokenizer(texts, TokenizerOptions(), say=told.append)
    assert set(signs) <= set(tokenizer.get_vocab())  # a quarter of the text
    assert tokenizer.tokenize("\u9f98") == ["[UNK]"]
    assert told[0].startswith("tokenizer leaves out the 1 rarest characters, ")
    assert "vocab_size" not in told[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_large_text_gives_the_tokenizer_of_its_sample(texts: list[str], algorithm: str) -> None:
    length = sum(map(len, texts))
    whole = train(texts, algorithm).backend_tokenizer.to_str()
    for enough in (0, length):
        assert train(texts, algorithm, max_characters=enough).backend_tokenizer.to_str() == whole
    told: list[str] = []
    options = TokenizerOptions(algorithm=algorithm, vocab_size=400, max_characters=length // 4)
    sampled = train_tokenizer(iter(texts), options, say=told.append).backend_tokenizer.to_str()
    sample = list(sample_texts(texts, max_characters=length // 4, say=told.append))
    assert sampled == train(sample, algorithm).backend_tokenizer.to_str()
    assert told[0].endswith("(tokenizer.max_characters), taken evenly from all of them")


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to train on"):
        train(texts, "wordpiece")


def test_useless_folders_are_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(InputError, match="no tokenizer that loads"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no tokenizer that loads"):
        load_tokenizer(tmp_path)
    tokenizer = train(texts, "wordpiece")
    tokenizer.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["cls_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no cls_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("options", [{"vocab_size": 10}, {"algorithm": "words"}, {"colour": "red"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenizerOptions(**options)
