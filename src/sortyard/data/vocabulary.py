"""What packing and masking need to know of a tokenizer, read from it once."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE_MARKS = "ĠĊĉčĈ▁"  # how byte-level and sentencepiece vocabularies spell white space


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Special tokens and word borders of a vocabulary.

    Attributes:
        size: number of ids, added tokens included.
        pad_id: id of the padding token.
        cls_id: id of the token that opens a sequence.
        sep_id: id of the token that closes a sequence.
        mask_id: id of the mask token; None where the tokenizer has none.
        unk_id: id of the unknown token; None where the tokenizer has none.
        special: [size] bool, ids that are never masked nor drawn at random.
        continues_word: [size] bool, tokens that go on with the word of the token before.
    """

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int | None
    unk_id: int | None
    special: NDArray[np.bool_]
    continues_word: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "Vocabulary":
        """Read the tables from a fast tokenizer.

        Raises:
            InputError: the tokenizer has no padding, [CLS] or [SEP] token.
        """
        for name in ("pad_token", "cls_token", "sep_token"):
            if getattr(tokenizer, f"{name}_id") is None:
                raise InputError(f"tokenizer: it has no {name}; models here need padding, [CLS] and [SEP] tokens")
        tokens: dict[str, int] = tokenizer.get_vocab()
        size = max(tokens.values()) + 1
        special = np.zeros(size, dtype=np.bool_)
        special[list(tokenizer.all_special_ids)] = True
        return cls(
            size=size,
            pad_id=tokenizer.pad_token_id,
            cls_id=tokenizer.cls_token_id,
            sep_id=tokenizer.sep_token_id,
            mask_id=tokenizer.mask_token_id,
            unk_id=tokenizer.unk_token_id,
            special=special,
            continues_word=_continuations(tokens, tokenizer, size=size),
        )

    def model_ids(self) -> dict[str, int]:
        """Return the special ids under the names of a model configuration; absent tokens are left out."""
        ids = {
            "pad_token_id": self.pad_id,
            "cls_token_id": self.cls_id,
            "sep_token_id": self.sep_id,
            "mask_token_id": self.mask_id,
            "unk_token_id": self.unk_id,
        }
        return {name: value for name, value in ids.items() if value is not None}


def _continuations(tokens: dict[str, int], tokenizer: "PreTrainedTokenizerFast", *, size: int) -> NDArray[np.bool_]:
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    prefix = model.get("continuing_subword_prefix")
    marks_spaces = any(token[:1] in ("Ġ", "▁") for token in tokens)
    table = np.zeros(size, dtype=np.bool_)
    for token, index in tokens.items():
        if prefix:
            table[index] = token.startswith(prefix) and len(token) > len(prefix)
        elif marks_spaces:
            table[index] = token[:1].isalnum() and token[0] not in _SPACE_MARKS
    table[list(tokenizer.all_special_ids)] = False
    return table
