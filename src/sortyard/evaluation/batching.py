"""Texts to logits: batches of texts of like length, answers in the order asked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sortyard.data.encoding import reads_token_types
from sortyard.evaluation.ahead import read_ahead

TextOrPair = str | tuple[str, str]
Encoded = dict[str, list[int]]
WINDOW_TEXTS = 2048  # texts held at a time: enough to sort by length, little enough to stream
# Padded tokens of a forward, by kind of device: a processor's caches hold few, a GPU wants many.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
# Longer sequences are padded to a multiple of this, so that there are few shapes: libraries keep a kernel for each.
_STEP, _STEP_FROM = 8, 64


def sequence_logits(
    model: Any,
    *,
    tokenizer: Any,
    inputs: Iterable[TextOrPair],
    max_length: int | None,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
) -> Iterator[tuple[TextOrPair, NDArray[np.float32]]]:
    """Run a sequence-classification model over texts, streaming.

    Windows of `WINDOW_TEXTS` texts are read and tokenized in a thread while the model runs on the one before, sorted
    by token count, run in batches of about equal numbers of tokens, and put back in order. So little is spent on
    padding, and three windows are held at most, however many texts there are.

    Args:
        model: called with the tokenizer's fields as keywords; returns `.logits` [B, classes]; has `.config` and
            `.device`.
        tokenizer: a Hugging Face tokenizer.
        inputs: texts, or (text, text) pairs; read in another thread.
        max_length: tokens a sequence is cut to, special ones included; None leaves sequences whole.
        batch_size: sequences a forward at most, at least 1; None = as many as there is room for.
        tokens_per_batch: tokens a forward at most, padding included, but one sequence always; None = what suits the
            device.

    Yields:
        Each input with its logits [classes], float32, in input order.
    """
    room = tokens_per_batch or TOKENS_PER_BATCH.get(model.device.type, TOKENS_PER_BATCH["cuda"])
    types = reads_token_types(model.config, tokenizer=tokenizer)
    windows = _windows(iter(inputs), tokenizer=tokenizer, max_length=max_length, token_types=types)
    with closing(read_ahead(windows)) as ahead:
        for window, encoded in ahead:
            lengths = [_padded_length(len(example["input_ids"]), max_length) for example in encoded]
            logits: dict[int, NDArray[np.float32]] = {}
            for chosen in plan_batches(lengths, batch_size=batch_size, tokens_per_batch=room):
                examples = [encoded[i] for i in chosen]
                rows = _forward(model, tokenizer, examples, length=lengths[chosen[0]])
                logits.update(zip(chosen, rows, strict=True))
            yield from ((text, logits[i]) for i, text in enumerate(window))


def plan_batches(lengths: Sequence[int], *, batch_size: int | None, tokens_per_batch: int) -> Iterator[list[int]]:
    """Group sequences of like length.

    Args:
        lengths: tokens of each sequence.
        batch_size: sequences in a batch at most; None = any number.
        tokens_per_batch: tokens in a batch at most, every sequence as long as the longest; one sequence is always in.

    Yields:
        Indices, the longest sequence first.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    start = 0
    while start < len(order):
        count = max(1, tokens_per_batch // max(1, lengths[order[start]]))
        end = start + min(count, batch_size or count)
        yield order[start:end]
        start = end


def _padded_length(length: int, max_length: int | None) -> int:
    if length <= _STEP_FROM:
        return length
    rounded = -(-length // _STEP) * _STEP
    return rounded if max_length is None else max(length, min(rounded, max_length))


def _windows(
    stream: Iterator[TextOrPair], *, tokenizer: Any, max_length: int | None, token_types: bool
) -> Iterator[tuple[list[TextOrPair], list[Encoded]]]:
    settings = {
        "truncation": max_length is not None,
        "max_length": max_length,
        "return_token_type_ids": token_types,
    }
    while window := list(islice(stream, WINDOW_TEXTS)):
        yield window, _encode(tokenizer, window=window, settings=settings)


def position_limit(model: Any, *, tokenizer: Any | None = None) -> int | None:
    """Return the most tokens a sequence may have: the smaller of what tokenizer and position table allow, or None.

    Tokenizers that know no limit report a huge number. RoBERTa's family starts its positions after the padding
    index, so its table holds that many fewer.
    """
    limits = [tokenizer.model_max_length] if tokenizer is not None and tokenizer.model_max_length < 10**9 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    if not limits and getattr(model.config, "max_position_embeddings", None):
        limits.append(model.config.max_position_embeddings)
    return min(limits, default=None)


def _encode(tokenizer: Any, *, window: Sequence[TextOrPair], settings: Mapping[str, Any]) -> list[Encoded]:
    """Tokenize each input by itself, unpadded: one dictionary of integer lists an input."""
    texts = [text if isinstance(text, str) else text[0] for text in window]
    pairs = [None if isinstance(text, str) else text[1] for text in window]
    if all(pair is None for pair in pairs):
        fields = tokenizer(texts, **settings)
    elif None not in pairs:
        fields = tokenizer(texts, pairs, **settings)
    else:
        return [_encode(tokenizer, window=[text], settings=settings)[0] for text in window]
    return [{name: fields[name][i] for name in fields} for i in range(len(window))]


def _forward(model: Any, tokenizer: Any, examples: list[Encoded], *, length: int) -> NDArray[np.float32]:
    names = list(examples[0])
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
