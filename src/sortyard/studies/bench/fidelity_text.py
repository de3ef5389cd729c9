"""Passages of a given number of tokens from whatever text there is."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sortyard.data.reading import read_texts
from sortyard.data.stdlib import STDLIB, stdlib_corpus
from sortyard.errors import InputError

_LONG_DOCUMENTS = 200
_CHARACTERS_A_TOKEN = 8
_FRONT_MATTER = 20_000


def read_documents(source: str) -> Iterator[str]:
    """Stream the documents of a file or folder; "stdlib" is the prose of Python's own library.

    Raises:
        InputError: there is no such source, or it holds no text.
    """
    if source == STDLIB and not Path(STDLIB).exists():
        yield from (document.text for document in stdlib_corpus())
    else:
        yield from (row.text for row in read_texts(source, on_skip=_skip))


def take_passages(
    documents: Iterable[str], *, tokenizer: Any, length: int, count: int, seed: int, source: str
) -> list[Int[Tensor, "1 T"]]:
    """Cut passages of exactly `length` tokens, the first and last of them the tokenizer's own marks.

    Each passage is of another document where enough of them are long, else the documents are joined and cut.

    Args:
        documents: The text.
        tokenizer: Turns text into tokens; has [CLS] and [SEP].
        length: Tokens of a passage, at least 3.
        count: Passages, at least 1.
        seed: Seed of the choice of documents.
        source: What the user called the text, for the error.

    Returns:
        The passages' token ids.

    Raises:
        InputError: the text is too short.
    """
    needed = _CHARACTERS_A_TOKEN * length
    short: list[str] = []
    long: list[str] = []
    for document in documents:
        (long if len(document) >= needed else short).append(document)
        if len(long) == _LONG_DOCUMENTS:
            break
    if len(long) >= count:
        texts = [_middle(document, needed) for document in random.Random(seed).sample(long, count)]
        pieces = [_tokens(tokenizer, text)[: length - 2] for text in texts]
        if all(len(piece) == length - 2 for piece in pieces):
            return [_with_marks(tokenizer, piece) for piece in pieces]
    stream = (token for document in (*long, *short) for token in _tokens(tokenizer, document))
    ids = list(islice(stream, count * (length - 2)))
    if len(ids) < count * (length - 2):
        raise InputError(
            f"--text {source}: {count} passages of {length} tokens need {count * (length - 2):,} tokens, and the text "
            f"has {len(ids):,}; give more text, or lower --passages or --lengths"
        )
    return [_with_marks(tokenizer, ids[start : start + length - 2]) for start in range(0, len(ids), length - 2)]


def _middle(document: str, needed: int) -> str:
    """A stretch that starts behind what stands before a book's first chapter, where there is room."""
    start = min(_FRONT_MATTER, len(document) - needed)
    return document[start : start + needed]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _with_marks(tokenizer: Any, ids: list[int]) -> Int[Tensor, "1 T"]:
    return torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])


def _skip(reason: str, file: str, row: int) -> None:
    """A row that cannot be read is simply not among the passages."""
