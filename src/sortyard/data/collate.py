"""Laying samples side by side as the tensors of one micro-batch."""

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sortyard.data.encoding import EncodedExamples
from sortyard.data.masking import IGNORED, mask_tokens
from sortyard.data.options import MaskingOptions
from sortyard.data.order import Share, share_of
from sortyard.data.packing import PackedRows
from sortyard.data.vocabulary import Vocabulary

Batch = dict[str, Tensor]

LENGTH_MULTIPLE = 8


def collate_rows(
    rows: PackedRows,
    samples: list[tuple[int, int]],
    *,
    vocabulary: Vocabulary,
    masking: MaskingOptions | None,
    seed: int,
) -> Batch:
    """Lay packed rows side by side.

    Args:
        rows: the rows of a split.
        samples: (epoch, row) of each row wanted.
        vocabulary: special tokens and word borders.
        masking: how targets are chosen; None makes every token a target of its predecessor (causal).
        seed: the run's seed.

    Returns:
        `input_ids`, `attention_mask` (1 = real) and `labels`, each [B, T] int64, and `cu_seqlens` [S + 1] int32 over
        the B * T positions. The padding at the end of a row is a segment of its own there.
    """
    length = rows.sequence_length
    input_ids = np.full((len(samples), length), vocabulary.pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    real = np.zeros_like(input_ids)
    borders: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    for index, (epoch, sample) in enumerate(samples):
        ids, boundaries = rows.row(sample)
        used = len(ids)
        if masking is None:
            input_ids[index, :used] = labels[index, :used] = ids
            labels[index, boundaries[:-1]] = IGNORED  # or the last token of one document would predict the next one
        else:
            input_ids[index, :used], labels[index, :used] = mask_tokens(
                ids, epoch=epoch, sample=sample, seed=seed, options=masking, vocabulary=vocabulary
            )
        real[index, :used] = 1
        ends = boundaries[1:] if used == length else np.append(boundaries[1:], length)
        borders.append(ends + index * length)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(real),
        "labels": torch.from_numpy(labels),
        "cu_seqlens": torch.from_numpy(np.concatenate(borders).astype(np.int32)),
    }


def collate_examples(
    examples: EncodedExamples, chosen: NDArray[np.int64], *, pad_id: int, share: Share = (0, 1)
) -> Batch:
    """Lay labelled examples side by side, padded to the longest one, on the tokenizer's side.

    That length is rounded up to a multiple of 8, but not beyond the examples' `max_length`.

    Args:
        examples: the examples of a split.
        chosen: [B] numbers of the examples wanted.
        pad_id: id of the padding token.
        share: (index, count) of the part of these rows to return, as wide as they all are.

    Raises:
        InputError: there are fewer rows than shares.

    Returns:
        `input_ids` and `attention_mask` [B, T] int64; `token_type_ids` where the examples hold them; `labels` [B] where
        they are known.
    """
    longest = int(examples.lengths[chosen].max())
    width = max(longest, min(LENGTH_MULTIPLE * ceil(longest / LENGTH_MULTIPLE), examples.max_length))
    chosen = chosen[slice(*share_of(len(chosen), share))]
    input_ids = np.full((len(chosen), width), pad_id, dtype=np.int64)
    real = np.zeros_like(input_ids)
    types = np.zeros_like(input_ids)
    for index, example in enumerate(chosen.tolist()):
        first, end = examples.offsets[example : example + 2]
        length = end - first
        taken = slice(width - length, width) if examples.pads_left else slice(length)
        input_ids[index, taken] = examples.ids[first:end]
        real[index, taken] = 1
        if examples.token_types is not None:
            types[index, taken] = examples.token_types[first:end]
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(real)}
    if examples.token_types is not None:
        batch["token_type_ids"] = torch.from_numpy(types)
    if examples.labels is not None:
        batch["labels"] = torch.from_numpy(examples.labels[chosen])
    return batch
