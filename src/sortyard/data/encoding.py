"""Labelled examples as token ids, cut to a length: flat arrays, so that a large task stays small in memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sortyard.data.examples import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ENCODE_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class EncodedExamples:
    """Tokenised examples, in their own order.

    Attributes:
        ids: the token ids of all examples, one after another, special tokens included.
        token_types: 0 for the first text and 1 for the second, beside `ids`; None unless asked for.
        offsets: [n + 1] where the examples begin and end in `ids`.
        labels: [n] int64 classes or float32 targets; None for a test split whose labels are hidden.
        num_truncated: examples that were longer than the maximum and were cut.
        max_length: tokens that an example may have, so that padding never goes beyond a model's positions.
        pads_left: whether the tokenizer pads before the tokens rather than after them.
    """

    ids: NDArray[np.int32]
    token_types: NDArray[np.int8] | None
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64] | NDArray[np.float32] | None
    num_truncated: int
    max_length: int
    pads_left: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] tokens of each example."""
        return np.diff(self.offsets)


def reads_token_types(config: Any, *, tokenizer: Any) -> bool:
    """Whether a model is told which of two texts a token comes from, in training as ever after.

    The tokenizer decides, as in transformers: it names the fields that a model is given. A model with no more than one
    type learns nothing from them, or has no place for them.

    Args:
        config: the model's configuration.
        tokenizer: the one beside the model.
    """
    return "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1


def encode_examples(
    examples: Examples, *, tokenizer: "PreTrainedTokenizerFast", max_length: int, token_type_ids: bool = False
) -> EncodedExamples:
    """Tokenise examples as `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, cutting the longer text of a pair first.

    Args:
        examples: texts, pairs and labels.
        tokenizer: a fast tokenizer with templates for one text and for two.
        max_length: tokens kept of an example, special tokens included.
        token_type_ids: keep which of the two texts a token comes from.
    """
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    lengths: list[int] = []
    num_truncated = 0
    core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_padding()
    core.enable_truncation(max_length=max_length, strategy="longest_first", direction=tokenizer.truncation_side)
    for first in range(0, len(examples), _ENCODE_AT_ONCE):
        chosen = slice(first, first + _ENCODE_AT_ONCE)
        texts = examples.texts[chosen]
        inputs = texts if examples.pairs is None else list(zip(texts, examples.pairs[chosen], strict=True))
        for encoding in core.encode_batch_fast(inputs):
            ids.append(np.asarray(encoding.ids, dtype=np.int32))
            lengths.append(len(encoding.ids))
            num_truncated += bool(encoding.overflowing)
            if token_type_ids:
                types.append(np.asarray(encoding.type_ids, dtype=np.int8))
    return EncodedExamples(
        ids=np.concatenate(ids),
        token_types=np.concatenate(types) if token_type_ids else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=examples.labels,
        num_truncated=num_truncated,
        max_length=max_length,
        pads_left=tokenizer.padding_side == "left",
    )
