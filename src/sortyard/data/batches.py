"""The sources the training loop reads: every step's batch is a pure function of the step's number."""

from collections.abc import Iterator
from functools import lru_cache
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sortyard.data.collate import Batch, collate_examples, collate_rows
from sortyard.data.encoding import EncodedExamples
from sortyard.data.options import MaskingOptions
from sortyard.data.order import GROUP_STREAM, ORDER_STREAM, Share, samples_at, share_of
from sortyard.data.packing import PackedRows
from sortyard.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "BatchSource",
    "CausalLMSource",
    "ClassificationSource",
    "MaskedLMSource",
    "causal_lm_validation",
    "classification_batches",
    "masked_lm_validation",
]

_WINDOW_BATCHES = 50


class BatchSource(Protocol):
    """What a training loop needs of its data."""

    @property
    def samples_per_step(self) -> int:
        """Samples of a full optimizer step, over all its micro-batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps after which every sample was visited."""

    def step(self, step: int, *, share: Share = (0, 1)) -> list[Batch]:
        """Return a process' share of each micro-batch of an optimizer step, counted from 0; by default all of them."""


class _PackedSource:
    """Packed rows in epoch order; samples run on across the border of an epoch, so every step is full."""

    def __init__(
        self,
        rows: PackedRows,
        *,
        vocabulary: Vocabulary,
        masking: MaskingOptions | None,
        micro_batch_size: int,
        accumulation_steps: int,
        seed: int,
    ) -> None:
        self.rows = rows
        self.vocabulary = vocabulary
        self.masking = masking
        self.micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        self.seed = seed

    @property
    def samples_per_step(self) -> int:
        """Rows of an optimizer step."""
        return self.micro_batch_size * self.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every row was visited; the last one may begin the next epoch."""
        return ceil(len(self.rows) / self.samples_per_step)

    def step(self, step: int, *, share: Share = (0, 1)) -> list[Batch]:
        """Return the `accumulation_steps` micro-batches of optimizer step `step`, or a process' share of each.

        Args:
            step: the step, from 0.
            share: (index, count): of each micro-batch, the contiguous part of its rows that process `index` of `count`
                gets, cut as by `numpy.array_split`. Only these rows are read; `cu_seqlens` counts over them.

        Raises:
            InputError: a micro-batch has fewer rows than there are processes, or a shard is damaged.
        """
        first, end = share_of(self.micro_batch_size, share)
        begin = step * self.samples_per_step
        return [
            collate_rows(
                self.rows,
                samples_at(np.arange(at + first, at + end), num_samples=len(self.rows), seed=self.seed),
                vocabulary=self.vocabulary,
                masking=self.masking,
                seed=self.seed,
            )
            for at in range(begin, begin + self.samples_per_step, self.micro_batch_size)
        ]


class MaskedLMSource(_PackedSource):
    """Packed rows with masks that are drawn anew in every epoch."""

    def __init__(
        self,
        rows: PackedRows,
        *,
        vocabulary: Vocabulary,
        masking: MaskingOptions,
        micro_batch_size: int,
        accumulation_steps: int = 1,
        seed: int,
    ) -> None:
        super().__init__(
            rows,
            vocabulary=vocabulary,
            masking=masking,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            seed=seed,
        )


class CausalLMSource(_PackedSource):
    """Packed rows whose labels are the tokens themselves, -100 at the start of each document; the model shifts them."""

    def __init__(
        self,
        rows: PackedRows,
        *,
        vocabulary: Vocabulary,
        micro_batch_size: int,
        accumulation_steps: int = 1,
        seed: int,
    ) -> None:
        super().__init__(
            rows,
            vocabulary=vocabulary,
            masking=None,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            seed=seed,
        )


class ClassificationSource:
    """Labelled examples in batches of similar length, padded to the longest of each micro-batch.

    An epoch is shuffled, cut into windows of 50 batches, sorted by length inside each window, cut into batches, and the
    batches are shuffled. The last batch of the data is kept though it may be smaller.
    """

    def __init__(
        self,
        examples: EncodedExamples,
        *,
        pad_id: int,
        micro_batch_size: int,
        accumulation_steps: int = 1,
        seed: int,
    ) -> None:
        self.examples = examples
        self.pad_id = pad_id
        self.micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self._epoch_batches = lru_cache(maxsize=2)(self._plan)

    @property
    def samples_per_step(self) -> int:
        """Examples of an optimizer step."""
        return self.micro_batch_size * self.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the last batch of the data included."""
        return ceil(len(self.examples) / self.samples_per_step)

    def step(self, step: int, *, share: Share = (0, 1)) -> list[Batch]:
        """Return the micro-batches of optimizer step `step`, counted from 0; a small last batch has fewer.

        Args:
            step: the step, from 0.
            share: (index, count): of each micro-batch, the contiguous part of its rows that process `index` of `count`
                gets, padded as the whole micro-batch is.

        Raises:
            InputError: some micro-batch of an epoch has fewer rows than there are processes.
        """
        share_of(self._fewest_rows, share)  # or the last step of an epoch would be the one to fail
        epoch, rank = divmod(step, self.steps_per_epoch)
        batch = self._epoch_batches(epoch)[rank]
        return [
            collate_examples(
                self.examples, batch[first : first + self.micro_batch_size], pad_id=self.pad_id, share=share
            )
            for first in range(0, len(batch), self.micro_batch_size)
        ]

    @property
    def _fewest_rows(self) -> int:
        return len(self.examples) % self.samples_per_step % self.micro_batch_size or self.micro_batch_size

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng((self.seed, ORDER_STREAM, epoch)).permutation(len(self.examples))
        size = self.samples_per_step
        batches: list[NDArray[np.int64]] = []
        for first in range(0, len(order), size * _WINDOW_BATCHES):
            window = order[first : first + size * _WINDOW_BATCHES]
            by_length = window[np.argsort(self.examples.lengths[window], kind="stable")]
            batches += [by_length[cut : cut + size] for cut in range(0, len(by_length), size)]
        shuffled = np.random.default_rng((self.seed, GROUP_STREAM, epoch)).permutation(len(batches))
        return [batches[index] for index in shuffled]


def masked_lm_validation(
    rows: PackedRows,
    *,
    vocabulary: Vocabulary,
    masking: MaskingOptions,
    batch_size: int,
    seed: int,
    most: int | None = None,
) -> Iterator[Batch]:
    """Iterate over held-out rows in their own order, with the masks of epoch 0: the same at every evaluation.

    Of more than `most` rows, as many are read, evenly spread.
    """
    for samples in _in_order(len(rows), batch_size, most=most):
        yield collate_rows(rows, samples, vocabulary=vocabulary, masking=masking, seed=seed)


def causal_lm_validation(
    rows: PackedRows, *, vocabulary: Vocabulary, batch_size: int, most: int | None = None
) -> Iterator[Batch]:
    """Iterate over held-out rows in their own order; of more than `most`, over as many, evenly spread."""
    for samples in _in_order(len(rows), batch_size, most=most):
        yield collate_rows(rows, samples, vocabulary=vocabulary, masking=None, seed=0)


def classification_batches(examples: EncodedExamples, *, pad_id: int, batch_size: int) -> Iterator[Batch]:
    """Iterate over labelled examples in their own order."""
    for first in range(0, len(examples), batch_size):
        chosen = np.arange(first, min(first + batch_size, len(examples)))
        yield collate_examples(examples, chosen, pad_id=pad_id)


def _in_order(num_rows: int, batch_size: int, *, most: int | None) -> Iterator[list[tuple[int, int]]]:
    count = min(num_rows, most or num_rows)
    for first in range(0, count, batch_size):
        yield [(0, place * num_rows // count) for place in range(first, min(first + batch_size, count))]
