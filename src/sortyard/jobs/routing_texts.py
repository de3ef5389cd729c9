"""The texts that routing is counted on, as batches: a run's own, or whatever the user names."""

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sortyard.data.options import CorpusOptions, MaskingOptions, TaskOptions
from sortyard.errors import InputError
from sortyard.jobs.corpora import check_corpus, other_text, prepare_for
from sortyard.jobs.display import Display

if TYPE_CHECKING:
    from torch import Tensor

    from sortyard.data.packing import PackedRows
    from sortyard.data.vocabulary import Vocabulary

    Batch = dict[str, Tensor]

HELD_OUT, EXAMPLES = "held-out rows", "development examples"


@dataclass(frozen=True, eq=False)
class RoutingText:
    """One domain.

    Attributes:
        name: What to call it.
        source: Where it comes from.
        batches: What is read of it.
        num_tokens: All tokens it has, of which the batches may hold a part; special tokens count if they hold it all.
    """

    name: str
    source: str
    batches: "tuple[Batch, ...]"
    num_tokens: int


def named_sources(values: Sequence[str]) -> dict[str, str]:
    """Gives each text a name: `NAME=PATH` has one, else the file's or folder's own without its extension.

    Args:
        values: What `--data` was given.

    Raises:
        InputError: Two have the same name, or one has none.
    """
    found: dict[str, str] = {}
    for value in values:
        name, _, source = value.partition("=")
        if not source or os.path.exists(value):  # not pathlib, which raises for a word too long to be a file name
            name, source = Path(value).stem or value, value
        if not name.strip():
            raise InputError(f"--data {value!r}: has no name before the =; write --data NAME=PATH")
        if name in found:
            raise InputError(f"--data: two texts are called {name!r}; write --data NAME=PATH to tell them apart")
        found[name] = os.path.expanduser(source)
    return found


@dataclass(frozen=True)
class TextReader:
    """Turns text into batches the way a model was trained on it.

    Attributes:
        corpus: How text is read and cut into rows; its path is that of the run's own text.
        masking: Which tokens are hidden as in training; None leaves the text as it stands.
        model: The model's folder, whose tokenizer is used.
        seed: Seed of the held-out rows and of the masks.
        batch_size: Rows in one forward pass.
        max_tokens: Tokens read of a text, about; they are spread over all of it.
        display: Told what is being done.
    """

    corpus: CorpusOptions
    masking: MaskingOptions | None
    model: Path
    seed: int
    batch_size: int
    max_tokens: int
    display: Display

    def check(self, sources: Iterable[str]) -> None:
        """Reads each text's first document, so that a wrong path or column is known before the long work.

        Raises:
            InputError: A source cannot be read.
        """
        for source in sources:
            check_corpus(other_text(self.corpus, source))

    def held_out(self, *, run: Path) -> RoutingText:
        """Reads the rows that a run has held out.

        Raises:
            InputError: It holds out none.
        """
        corpus = prepare_for(self.model, self.corpus, folder=run / "data", seed=self.seed, display=self.display)
        if corpus.held_out is None:
            raise InputError(f"{run}: holds out no rows (validation_fraction is 0); give --data")
        return self._text(HELD_OUT, HELD_OUT, rows=corpus.held_out, vocabulary=corpus.vocabulary)

    def given(self, name: str, source: str) -> RoutingText:
        """Reads a text from outside.

        Raises:
            InputError: It cannot be read, or was prepared with another tokenizer.
        """
        with TemporaryDirectory(prefix="sortyard-") as aside:
            other = other_text(self.corpus, source)
            corpus = prepare_for(self.model, other, folder=Path(aside), seed=self.seed, display=self.display)
            return self._text(name, source, rows=corpus.rows, vocabulary=corpus.vocabulary)

    def _text(self, name: str, source: str, *, rows: "PackedRows", vocabulary: "Vocabulary") -> RoutingText:
        from sortyard.data.collate import collate_rows

        chosen = spread(len(rows), mean_tokens=rows.num_tokens / len(rows), max_tokens=self.max_tokens)
        batches = tuple(
            collate_rows(
                rows,
                [(0, row) for row in chosen[first : first + self.batch_size]],
                vocabulary=vocabulary,
                masking=self.masking,
                seed=self.seed,
            )
            for first in range(0, len(chosen), self.batch_size)
        )
        read = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return RoutingText(name, source, batches, read if len(chosen) == len(rows) else rows.num_tokens)


def example_text(
    options: TaskOptions, *, tokenizer: Any, max_length: int, token_types: bool, batch_size: int, max_tokens: int
) -> RoutingText:
    """Reads a task's development examples.

    Args:
        options: The task.
        tokenizer: The model's.
        max_length: Tokens kept of an example.
        token_types: Whether the model tells the two texts of a pair apart.
        batch_size: Examples in one forward pass.
        max_tokens: Tokens read, about.

    Raises:
        InputError: The examples cannot be read.
    """
    import numpy as np

    from sortyard.data.collate import collate_examples
    from sortyard.data.encoding import encode_examples
    from sortyard.data.tasks import load_examples

    encoded = encode_examples(
        load_examples(options, "dev"), tokenizer=tokenizer, max_length=max_length, token_type_ids=token_types
    )
    total = int(encoded.lengths.sum())
    chosen = np.array(spread(len(encoded), mean_tokens=total / len(encoded), max_tokens=max_tokens))
    batches = tuple(
        collate_examples(encoded, chosen[first : first + batch_size], pad_id=tokenizer.pad_token_id)
        for first in range(0, len(chosen), batch_size)
    )
    return RoutingText(EXAMPLES, EXAMPLES, batches, total)


def spread(count: int, *, mean_tokens: float, max_tokens: int) -> list[int]:
    """Chooses rows evenly over all of a text, as many as hold about `max_tokens`, and at least one."""
    wanted = min(count, max(1, round(max_tokens / mean_tokens)))
    return [number * count // wanted for number in range(wanted)]
