"""Passages of exactly as many tokens as a length asks for, with or without labels, part of them held out."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sortyard.data.locate import format_of, locate, missing_column
from sortyard.data.reading import read_texts
from sortyard.data.tables import open_table
from sortyard.errors import InputError
from sortyard.studies.gates.sources import WHOLE, Passages
from sortyard.studies.given import digest_of

MOST_CHARACTERS = 200_000_000  # read of a source, to choose documents from
_USED_CHARACTERS = 8_000_000  # of all sources, more than a fine-tuning reads
_CHARACTERS_A_TOKEN = 8
_MOST_ROWS = 400  # of training text at a length: more than a fine-tuning reads
_SPECIALS = 2
_HELD_OUT_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Text:
    """Passages of one length: what is fine-tuned on, and what is scored."""

    training: Passages
    held_out: Passages

    def digest(self) -> str:
        """A digest of every token."""
        return digest_of(*self.training.pieces, *self.held_out.pieces)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Labelled rows [n, T] of one length, special tokens included.

    Attributes:
        labels: The labels' names, in the order of their numbers.
        training: Rows and label numbers to train on.
        held_out: Rows and label numbers to score.
        split: How the held-out rows differ from the others: "other documents" or "other parts".
    """

    labels: tuple[str, ...]
    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    split: str

    def digest(self) -> str:
        """A digest of every token and label."""
        arrays = [tensor.numpy() for tensor in (*self.training, *self.held_out)]
        return digest_of(np.array(self.labels), *arrays)


def read_text(
    sources: Sequence[str], *, tokenizer: Any, lengths: Sequence[int], held_out_tokens: int, seed: int
) -> dict[int, Text]:
    """Cut the documents of some sources into passages of each length; whole documents are held out.

    Args:
        sources: Files, folders or hub names.
        tokenizer: The model's.
        lengths: Tokens of a passage, special tokens included.
        held_out_tokens: About as many are scored at each length.
        seed: Seed of the order of documents and passages.

    Returns:
        The passages by length.

    Raises:
        InputError: a source cannot be read, or too few documents are as long as a passage.
    """
    documents = [document for source in sources for document in _documents(source)]
    order = np.random.default_rng(seed).permutation(len(documents))
    each = max(_USED_CHARACTERS // max(1, len(documents)), 2 * _CHARACTERS_A_TOKEN * max(lengths))
    chosen = _up_to(_USED_CHARACTERS, [documents[index][:each] for index in order])
    tokens = [_tokens(tokenizer, text) for text in chosen]
    return {
        length: _text_of(tokens, length, held_out_tokens=held_out_tokens, seed=seed, sources=sources)
        for length in lengths
    }


def read_labelled(
    source: str, *, column: str, tokenizer: Any, lengths: Sequence[int], most_labels: int, most_passages: int, seed: int
) -> dict[int, LabelledText]:  # fmt: skip
    """Cut labelled documents into passages of each length.

    Where two labels at least have several documents each, only those labels are used, and whole documents are held
    out; else the last quarter of every document is.

    Args:
        source: A table with the columns text and `column`.
        column: What is to be told from a passage.
        tokenizer: The model's.
        lengths: Tokens of a passage, special tokens included.
        most_labels: Labels that are told apart, those with the most passages.
        most_passages: Of one label at a length, so that labels weigh about the same.
        seed: Seed of the order.

    Returns:
        The passages by length.

    Raises:
        InputError: the table lacks a column, or fewer than two labels have passages of a length.
    """
    documents: dict[str, list[str]] = defaultdict(list)
    for text, label in _labelled_rows(source, column=column):
        documents[label].append(text)
    most = most_passages * _CHARACTERS_A_TOKEN * max(lengths)  # characters of a label, if every passage is used
    by_label = {
        label: [
            _tokens(tokenizer, text[: max(4 * _CHARACTERS_A_TOKEN * max(lengths), most // len(texts))])
            for text in _up_to(most, texts)
        ]
        for label, texts in _largest_labels(documents, most=2 * most_labels)
    }
    return {
        length: _labelled_of(
            by_label, length, tokenizer=tokenizer, most_labels=most_labels, most_passages=most_passages, seed=seed,
            source=source,
        )
        for length in lengths
    }  # fmt: skip


def _documents(source: str) -> list[str]:
    found, characters = [], 0
    try:
        for row in read_texts(source, on_skip=lambda *_: None, max_document_characters=WHOLE):
            found.append(row.text)
            characters += len(row.text)
            if characters >= MOST_CHARACTERS:
                break
    except InputError as error:
        raise InputError(f"--data {source}: {error}") from error
    return found


def _up_to(characters: int, texts: Sequence[str]) -> list[str]:
    before = accumulate(map(len, texts), initial=0)
    return [text for text, start in zip(texts, before, strict=False) if start < characters]


def _largest_labels(documents: Mapping[str, Sequence[str]], *, most: int) -> list[tuple[str, Sequence[str]]]:
    """More labels than are used, as some may have too few passages: those of several documents first."""

    def rank(item: tuple[str, Sequence[str]]) -> tuple[bool, int, str]:
        label, texts = item
        return len(texts) < 2, -sum(map(len, texts)), label

    return sorted(documents.items(), key=rank)[:most]


def _tokens(tokenizer: Any, text: str) -> NDArray[np.int64]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int64)


def _pieces(tokens: NDArray[np.int64], length: int) -> list[NDArray[np.int64]]:
    width = length - _SPECIALS
    return list(tokens[: len(tokens) // width * width].reshape(-1, width))


def _text_of(
    documents: Sequence[NDArray[np.int64]], length: int, *, held_out_tokens: int, seed: int, sources: Sequence[str]
) -> Text:
    long = [pieces for pieces in (_pieces(tokens, length) for tokens in documents) if pieces]
    wanted = max(2, held_out_tokens // length)
    num_aside = max(1, min(len(long) // 4, wanted))
    if len(long) < 2:
        raise InputError(
            f"--data {' '.join(sources)}: {len(long)} documents have the {length:,} tokens of a passage, and two are "
            "needed, one of them to hold out; give longer texts, or lower --lengths"
        )
    each = -(-wanted // num_aside)  # of several documents, so that no single one decides
    held_out = [piece for pieces in long[:num_aside] for piece in pieces[:each]][:wanted]
    training = [piece for pieces in long[num_aside:] for piece in pieces[: -(-_MOST_ROWS // len(long)) + 1]]
    order = np.random.default_rng((seed, length)).permutation(len(training))[:_MOST_ROWS]
    return Text(_passages([training[index] for index in order]), _passages(held_out))


def _passages(pieces: list[NDArray[np.int64]]) -> Passages:
    return Passages(pieces, np.zeros(len(pieces), dtype=np.int64))


def _labelled_rows(source: str, *, column: str) -> Iterator[tuple[str, str]]:
    try:
        files = locate(source).files
    except InputError as error:
        raise InputError(f"--task-data {source}: {error}") from error
    if not files:
        raise InputError(f"--task-data {source}: expected a file or folder with the columns text and {column}")
    for path in files:
        table = open_table(Path(path), format=format_of(path, "auto"), on_skip=lambda *_: None)
        for wanted, option in (("text", "--task-data"), (column, "--label-column")):
            if wanted not in table.columns:
                raise missing_column(f"--task-data {path}", wanted, table.columns, option)
        for _, (text, label) in table.rows(("text", column)):
            if isinstance(text, str) and text and label is not None and str(label):
                yield text, str(label)


def _labelled_of(
    by_label: Mapping[str, Sequence[NDArray[np.int64]]], length: int, *, tokenizer: Any, most_labels: int,
    most_passages: int, seed: int, source: str,
) -> LabelledText:  # fmt: skip
    pieces = {
        label: [found for tokens in texts if (found := _pieces(tokens, length))] for label, texts in by_label.items()
    }
    several = {label: texts for label, texts in pieces.items() if len(texts) >= 2}
    by_document = len(several) >= 2
    usable = several if by_document else {label: texts for label, texts in pieces.items() if sum(map(len, texts)) >= 4}
    if len(usable) < 2:
        raise InputError(
            f"--task-data {source}: {len(usable)} labels have several passages of {length:,} tokens, and two are "
            "needed; give longer or more texts, or lower --text-length"
        )
    largest = sorted(usable, key=lambda label: (-min(most_passages, sum(map(len, usable[label]))), label))
    labels = sorted(largest[:most_labels])
    halves: tuple[list[tuple[NDArray[np.int64], int]], ...] = ([], [])
    for number, label in enumerate(labels):
        cut = _halves(usable[label], by_document=by_document, most_passages=most_passages)
        for part, found in zip(halves, cut, strict=True):
            part.extend((piece, number) for piece in found)
    training, held_out = (_rows(half, tokenizer=tokenizer, seed=seed) for half in halves)
    return LabelledText(tuple(labels), training, held_out, "other documents" if by_document else "other parts")


def _halves(
    texts: Sequence[list[NDArray[np.int64]]], *, by_document: bool, most_passages: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Passages of a label to train on and to score, of all of its documents equally many as far as they go."""
    if by_document:
        num_aside = max(1, round(_HELD_OUT_SHARE * len(texts)))
        kept, aside = list(texts[num_aside:]), list(texts[:num_aside])
    else:
        cuts = [max(1, round((1 - _HELD_OUT_SHARE) * len(pieces))) for pieces in texts]
        kept = [pieces[:cut] for pieces, cut in zip(texts, cuts, strict=True)]
        aside = [pieces[cut:] for pieces, cut in zip(texts, cuts, strict=True)]
    most = round(_HELD_OUT_SHARE * most_passages)
    return _evenly(kept, most=most_passages - most), _evenly(aside, most=most)


def _evenly(texts: Sequence[list[NDArray[np.int64]]], *, most: int) -> list[NDArray[np.int64]]:
    longest = max(map(len, texts), default=0)
    in_turn = [pieces[rank] for rank in range(longest) for pieces in texts if rank < len(pieces)]
    return in_turn[:most]


def _rows(half: Sequence[tuple[NDArray[np.int64], int]], *, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(seed).permutation(len(half))
    rows = [[tokenizer.cls_token_id, *half[index][0].tolist(), tokenizer.sep_token_id] for index in order]
    return torch.tensor(rows), torch.tensor([half[index][1] for index in order])
