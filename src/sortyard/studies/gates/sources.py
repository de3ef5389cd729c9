"""Several sources of text as rows of one length, in one random order, part of each source held out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sortyard.data.reading import read_texts
from sortyard.data.skips import SkipLog
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError
from sortyard.studies.given import digest_of
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Say = Callable[[str], None]
MOST_CHARACTERS = 200_000_000  # read of a source, to choose documents from
TRAINING_CHARACTERS, HELD_OUT_CHARACTERS = 6_000_000, 300_000
DOCUMENT_CHARACTERS = 60_000  # no more of one document, so that a few long books are not all of a source
TOKENIZER_CHARACTERS = 1_500_000
VOCAB_SIZE = 4096
_SPECIALS = 2
WHOLE = 100_000_000  # characters up to which a document is not cut in two, of which one could be held out


@dataclass(frozen=True, eq=False)
class Passages:
    """Pieces of text, each as long as a row, as `PackedRows` reads them.

    Attributes:
        pieces: The token ids of each piece, without special tokens.
        sources: [n] the number of the source that each piece is of.
    """

    pieces: list[NDArray[np.int64]]
    sources: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] tokens of each piece."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    @property
    def num_documents(self) -> int:
        """All pieces."""
        return len(self.pieces)

    def offsets(self, first: int, end: int) -> NDArray[np.int64]:
        """Return where the pieces `first` to `end` - 1 begin among all tokens, and where the last one ends."""
        return self._offsets[first : end + 1]

    def tokens(self, first: int, end: int) -> NDArray[np.integer]:
        """Return the tokens `first` to `end` - 1 of all pieces."""
        return self._tokens[first:end]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def _tokens(self) -> NDArray[np.int64]:
        return np.concatenate(self.pieces)


@dataclass(frozen=True, eq=False)
class Corpora:
    """What was read.

    Attributes:
        names: The sources' names, in the order given.
        vocabulary: Of the tokenizer, which is trained on the training text of all sources.
        training: Pieces of training documents, in random order.
        held_out: Pieces of other documents, in random order, so that a batch mixes sources as in training.
    """

    names: tuple[str, ...]
    vocabulary: Vocabulary
    training: Passages
    held_out: Passages

    def digest(self) -> str:
        """A digest of all that is trained on or scored, and of the names."""
        passages = (self.training, self.held_out)
        arrays = [array for found in passages for array in (found.sources, *found.pieces)]
        return digest_of(np.array(self.names), *arrays)


def read_corpora(sources: Sequence[tuple[str, str]], *, length: int, seed: int, say: Say) -> Corpora:
    """Read the sources, equally much of each as far as it goes.

    Documents, not passages, are held out, at random. At most 60,000 characters are taken of each. A text that occurs
    again, in whatever source, is left out.

    Args:
        sources: Name and path (anything that `sortyard.data.reading.read_texts` reads) of each.
        length: Tokens of a row, special tokens included.
        seed: Seed of the choice and order of documents.
        say: Takes a line of progress.

    Returns:
        The corpora.

    Raises:
        InputError: a source cannot be read, or gives less than two documents.
    """
    training, held_out = [], []
    seen: set[str] = set()  # or a text could be trained on and held out, too
    for number, (name, path) in enumerate(sources):
        documents = _documents(name, path, seen=seen, say=say)
        kept, aside = _split(documents, np.random.default_rng((seed, number)))
        if not kept:
            raise InputError(f"--data {name}={path}: it has fewer than two documents of its own; one is held out")
        say(f"{name}: {sum(map(len, kept)):,} characters to train on, {sum(map(len, aside)):,} held out")
        training.append(kept)
        held_out.append(aside)
    tokenizer = train_tokenizer(_tokenizer_texts(training), TokenizerOptions(vocab_size=VOCAB_SIZE))
    order = np.random.default_rng((seed, len(sources)))
    found = Corpora(
        names=tuple(name for name, _ in sources),
        vocabulary=Vocabulary.of(tokenizer),
        training=_passages(training, tokenizer, length=length, order=order),
        held_out=_passages(held_out, tokenizer, length=length, order=order),
    )
    _check_lengths(found, sources, length=length)
    return found


def _check_lengths(found: Corpora, sources: Sequence[tuple[str, str]], *, length: int) -> None:
    for number, (name, path) in enumerate(sources):
        for passages in (found.training, found.held_out):
            if number not in passages.sources:
                raise InputError(
                    f"--data {name}={path}: too few of its documents have the {length} tokens that a row needs; "
                    "give longer texts, or more of them"
                )


def _documents(name: str, path: str, *, seen: set[str], say: Say) -> list[str]:
    """Read a source's beginning, less the texts that were seen before, which it adds to."""
    skipped, documents, characters = SkipLog(), [], 0
    try:
        for row in read_texts(path, on_skip=skipped.add, max_document_characters=WHOLE):
            text = row.text[:DOCUMENT_CHARACTERS]
            if text not in seen:
                seen.add(text)
                documents.append(text)
                characters += len(text)
            if characters >= MOST_CHARACTERS:
                say(f"{name}: documents are chosen from its first {characters:,} characters")
                break
    except InputError as error:
        raise InputError(f"--data {name}={path}: {error}") from error
    if skipped.total:
        say(f"{name}: skipped {skipped.describe()}")
    return documents


def _split(documents: list[str], generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Cut a source into (training, held out), each up to its number of characters."""
    order = [documents[index] for index in generator.permutation(len(documents))]
    aside = _up_to(order, min(HELD_OUT_CHARACTERS, sum(map(len, order)) // 10))
    return _up_to(order[len(aside) :], TRAINING_CHARACTERS), aside


def _up_to(documents: Sequence[str], characters: int) -> list[str]:
    before = accumulate(map(len, documents), initial=0)
    return [document for document, start in zip(documents, before, strict=False) if start < max(1, characters)]


def _tokenizer_texts(training: Sequence[Sequence[str]]) -> Iterable[str]:
    for documents in training:
        yield from _up_to(documents, TOKENIZER_CHARACTERS)


def _passages(
    documents: Sequence[Sequence[str]],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    length: int,
    order: np.random.Generator,
) -> Passages:
    pieces: list[NDArray[np.int64]] = []
    sources: list[int] = []
    for source, texts in enumerate(documents):
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            found = _pieces(np.asarray(encoding.ids, dtype=np.int64), length - _SPECIALS)
            pieces += found
            sources += [source] * len(found)
    chosen = order.permutation(len(pieces))
    return Passages([pieces[index] for index in chosen], np.array(sources, dtype=np.int64)[chosen])


def _pieces(ids: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """Whole rows, so that no batch needs padding; what is left over at the end of a text is not used."""
    return list(ids[: len(ids) // width * width].reshape(-1, width))
