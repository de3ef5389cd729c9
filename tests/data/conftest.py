"""A small tokenizer and corpus, and documents that live in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sortyard.data.vocabulary import Vocabulary
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

SYLLABLES = ["ka", "lo", "mi", "ne", "ru", "sta", "ber", "ton", "wi", "zu"]


def invented_text(generator: np.random.Generator, num_words: int) -> str:
    words = ["".join(generator.choice(SYLLABLES, size=generator.integers(1, 5))) for _ in range(num_words)]
    return " ".join(words) + "."


@pytest.fixture(scope="session")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    return [invented_text(generator, int(generator.integers(3, 120))) for _ in range(200)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Any:
    return train_tokenizer(texts, TokenizerOptions(vocab_size=400))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary.of(tokenizer)


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


class MemoryDocuments:
    """Documents whose tokens all differ, so that a test can find each of them again."""

    def __init__(self, lengths: list[int], first_id: int = 10) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self.num_documents = len(lengths)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._first_id = first_id

    def offsets(self, first: int, end: int) -> np.ndarray:
        assert 0 <= first < end <= self.num_documents
        return self._offsets[first : end + 1]

    def tokens(self, first: int, end: int) -> np.ndarray:
        assert 0 <= first < end <= self._offsets[-1]
        return np.arange(first, end) + self._first_id
