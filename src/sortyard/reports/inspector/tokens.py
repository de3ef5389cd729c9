"""A text and what stands before it as one sequence of tokens, with the place of the text in it."""

from dataclasses import dataclass
from typing import Any

from sortyard.errors import InputError


@dataclass(frozen=True)
class EncodedText:
    """One sequence.

    Attributes:
        ids: the model's input, special tokens included.
        tokens: the same as pieces of text.
        sentence: first place of the text that is looked at, and the one after its last.
        last_word: places of the text's last word; empty where it has none.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    sentence: tuple[int, int]
    last_word: tuple[int, ...]


def encode_text(tokenizer: Any, *, text: str, before: str, limit: int) -> EncodedText:
    """Tokenize a text behind another.

    Args:
        tokenizer: a fast tokenizer.
        text: what is looked at.
        before: what stands before it; may be empty.
        limit: tokens there may be.

    Raises:
        InputError: there is no text, or there are too many tokens.
    """
    if not text.strip():
        raise InputError("text: is empty; type a sentence, or paste a longer text")
    whole = f"{before.rstrip()} {text.strip()}" if before.strip() else text.strip()
    encoded = tokenizer(whole, return_offsets_mapping=True, truncation=False, verbose=False)
    ids = encoded["input_ids"]
    if len(ids) > limit:
        raise InputError(
            f"text: has {len(ids):,} tokens with what stands before it; at most {limit:,} can be looked at with this "
            "model, so shorten it"
        )
    inside = _places(encoded["offset_mapping"], start=len(whole) - len(text.strip()))
    words = encoded.word_ids()
    if not inside:
        raise InputError("text: holds no token that the model knows; type a sentence")
    last = next(
        (words[i] for i in reversed(inside) if whole[slice(*encoded["offset_mapping"][i])].strip().isalnum()), None
    )
    return EncodedText(
        ids=tuple(ids),
        tokens=tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids)),
        sentence=(inside[0], inside[-1] + 1),
        last_word=tuple(i for i in inside if last is not None and words[i] == last),
    )


def _places(offsets: list[tuple[int, int]], *, start: int) -> list[int]:
    """Return the tokens that end behind a character; special tokens have no extent."""
    return [i for i, (low, high) in enumerate(offsets) if high > low and high > start]
