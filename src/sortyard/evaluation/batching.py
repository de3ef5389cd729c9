"""Texts to logits: batches of texts of like length, answers in the order asked."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

TextOrPair = str | tuple[str, str]
WINDOW_BATCHES = 64  # texts held at a time, in batches: enough to sort by length, little enough to stream


def sequence_logits(
    model: Any, *, tokenizer: Any, inputs: Iterable[TextOrPair], batch_size: int, max_length: int | None
) -> Iterator[tuple[TextOrPair, NDArray[np.float32]]]:
    """Run a sequence-classification model over texts, streaming.

    Windows of `WINDOW_BATCHES` batches are read, sorted by token count, run, and put back in order, so memory is
    bounded however many texts there are and little is spent on padding.

    Args:
        model: called with the tokenizer's fields as keywords; returns `.logits` [B, classes]; has `.device`.
        tokenizer: a Hugging Face tokenizer.
        inputs: texts, or (text, text) pairs.
        batch_size: sequences a forward, at least 1.
        max_length: tokens a sequence is cut to, special ones included; None leaves sequences whole.

    Yields:
        Each input with its logits [classes], float32, in input order.
    """
    stream = iter(inputs)
    while window := list(islice(stream, batch_size * WINDOW_BATCHES)):
        encoded = _encode(tokenizer, window=window, max_length=max_length)
        order = sorted(range(len(window)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
        logits: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits.update(zip(chosen, _forward(model, tokenizer, [encoded[i] for i in chosen]), strict=True))
        yield from ((text, logits[i]) for i, text in enumerate(window))


def position_limit(model: Any, *, tokenizer: Any) -> int | None:
    """Return the most tokens a sequence may have: the smaller of what tokenizer and position table allow, or None.

    Tokenizers that know no limit report a huge number. RoBERTa's family starts its positions after the padding
    index, so its table holds that many fewer.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < 10**9 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    if not limits and getattr(model.config, "max_position_embeddings", None):
        limits.append(model.config.max_position_embeddings)
    return min(limits, default=None)


def _encode(tokenizer: Any, *, window: Sequence[TextOrPair], max_length: int | None) -> list[dict[str, list[int]]]:
    """Tokenize each input by itself, unpadded: one dictionary of integer lists an input."""
    cut: dict[str, Any] = {"truncation": max_length is not None, "max_length": max_length}
    texts = [text if isinstance(text, str) else text[0] for text in window]
    pairs = [None if isinstance(text, str) else text[1] for text in window]
    if all(pair is None for pair in pairs):
        fields = tokenizer(texts, **cut)
    elif None not in pairs:
        fields = tokenizer(texts, pairs, **cut)
    else:
        return [_encode(tokenizer, window=[text], max_length=max_length)[0] for text in window]
    return [{name: fields[name][i] for name in fields} for i in range(len(window))]


def _forward(model: Any, tokenizer: Any, examples: list[dict[str, list[int]]]) -> NDArray[np.float32]:
    names = list(examples[0])
    length = max(len(example["input_ids"]) for example in examples)
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    batch = {
        name: torch.tensor([_padded(example[name], length, fill.get(name, 0), tokenizer) for example in examples])
        for name in names
    }
    with torch.inference_mode():
        logits: NDArray[np.float32] = (
            model(**{k: v.to(model.device) for k, v in batch.items()}).logits.float().cpu().numpy()
        )
    return logits


def _padded(values: list[int], length: int, value: int, tokenizer: Any) -> list[int]:
    missing = [value] * (length - len(values))
    return missing + values if tokenizer.padding_side == "left" else values + missing
