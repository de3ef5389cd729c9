"""Sources: a step's batch is a function of the step, every sample comes once per epoch, layouts are right."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from sortyard.data.batches import (
    CausalLMSource,
    ClassificationSource,
    MaskedLMSource,
    causal_lm_validation,
    classification_batches,
    masked_lm_validation,
)
from sortyard.data.encoding import EncodedExamples, encode_examples
from sortyard.data.examples import Examples
from sortyard.data.glue import TASKS
from sortyard.data.masking import IGNORED
from sortyard.data.options import MaskingOptions
from sortyard.data.order import global_samples
from sortyard.data.packing import PackedRows
from sortyard.data.skips import SkipLog
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError
from tests.data.conftest import MemoryDocuments

LENGTHS = [3, 50, 9, 20, 31, 77, 12, 5, 64, 18, 40]


@pytest.fixture(scope="module")
def rows(vocabulary: Vocabulary) -> PackedRows:
    return PackedRows(MemoryDocuments([length // 2 for length in LENGTHS]), sequence_length=32, vocabulary=vocabulary)


def masked_source(rows: PackedRows, vocabulary: Vocabulary, **options: int) -> MaskedLMSource:
    sizes = {"micro_batch_size": 2, "accumulation_steps": 2, "seed": 0, **options}
    return MaskedLMSource(rows, vocabulary=vocabulary, masking=MaskingOptions(), **sizes)  # type: ignore[arg-type]


def assert_equal_batches(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_any_step_is_computed_without_the_earlier_ones(rows: PackedRows, vocabulary: Vocabulary) -> None:
    source = masked_source(rows, vocabulary)
    steps = [source.step(step) for step in range(7)]
    assert_equal_batches(masked_source(rows, vocabulary).step(6), steps[6])
    assert_equal_batches(source.step(2), steps[2])
    assert not torch.equal(steps[0][0]["input_ids"], steps[1][0]["input_ids"])


def test_accumulation_only_cuts_the_step_differently(rows: PackedRows, vocabulary: Vocabulary) -> None:
    whole = masked_source(rows, vocabulary, micro_batch_size=4, accumulation_steps=1).step(3)[0]
    parts = masked_source(rows, vocabulary, micro_batch_size=1, accumulation_steps=4).step(3)
    assert len(parts) == 4
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


COUNTS = [1, 2, 3, 4, 8]


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put the shares of a micro-batch together again."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "cu_seqlens"}
    if "cu_seqlens" in parts[0]:
        borders, before = [torch.zeros(1, dtype=torch.int32)], 0
        for part in parts:
            borders.append(part["cu_seqlens"][1:] + before)
            before += part["input_ids"].numel()
        whole["cu_seqlens"] = torch.cat(borders).to(torch.int32)
    return whole


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_shares_together_are_the_step_of_one_process(
    rows: PackedRows, vocabulary: Vocabulary, kind: str, count: int
) -> None:
    sizes = {"micro_batch_size": 9, "accumulation_steps": 2, "seed": 4}
    source = (
        masked_source(rows, vocabulary, **sizes)
        if kind == "masked"
        else CausalLMSource(rows, vocabulary=vocabulary, **sizes)
    )
    for step in range(4):  # across the border of an epoch
        shares = [source.step(step, share=(index, count)) for index in range(count)]
        assert_equal_batches([joined(list(parts)) for parts in zip(*shares, strict=True)], source.step(step))


def test_a_share_reads_its_own_rows_only(
    rows: PackedRows, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = masked_source(rows, vocabulary, micro_batch_size=4)
    read: list[int] = []
    real = PackedRows.row
    monkeypatch.setattr(PackedRows, "row", lambda self, index: read.append(index) or real(self, index))
    source.step(5, share=(1, 4))
    samples = global_samples(5, batch_size=8, num_samples=len(rows), seed=0)
    assert read == [samples[1][1], samples[5][1]]


def test_more_processes_than_rows_are_refused(rows: PackedRows, vocabulary: Vocabulary) -> None:
    source = masked_source(rows, vocabulary, micro_batch_size=4)
    with pytest.raises(InputError, match=r"loop\.micro_batch_size: 8 .* micro-batch of 4 row.* set it to 8 or more"):
        source.step(0, share=(0, 8))


def test_layout_of_a_masked_batch(rows: PackedRows, vocabulary: Vocabulary) -> None:
    source = masked_source(rows, vocabulary)
    batch = source.step(0)[1]
    samples = global_samples(0, batch_size=4, num_samples=len(rows), seed=0)[2:]
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64, "attention_mask": torch.int64, "labels": torch.int64, "cu_seqlens": torch.int32,
    }  # fmt: skip
    borders = {0}
    for index, (_, sample) in enumerate(samples):
        ids, boundaries = rows.row(sample)
        used = len(ids)
        restored = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
        assert restored[index, :used].tolist() == ids.tolist()
        assert (batch["input_ids"][index, used:] == vocabulary.pad_id).all()
        assert batch["attention_mask"][index].tolist() == [1] * used + [0] * (32 - used)
        borders |= {int(border) + 32 * index for border in boundaries} | {32 * (index + 1)}
    assert batch["cu_seqlens"].tolist() == sorted(borders)


def test_causal_labels_leave_out_the_start_of_each_document(rows: PackedRows, vocabulary: Vocabulary) -> None:
    source = CausalLMSource(rows, vocabulary=vocabulary, micro_batch_size=3, seed=0)
    batch = source.step(0)[0]
    starts = batch["input_ids"] == vocabulary.cls_id
    real = batch["attention_mask"].bool()
    assert (batch["labels"][starts | ~real] == IGNORED).all()
    assert torch.equal(batch["labels"][real & ~starts], batch["input_ids"][real & ~starts])


def test_validation_is_the_same_every_time_and_covers_all_rows(rows: PackedRows, vocabulary: Vocabulary) -> None:
    options = {"vocabulary": vocabulary, "masking": MaskingOptions(), "batch_size": 4, "seed": 5}
    first, second = (list(masked_lm_validation(rows, **options)) for _ in range(2))  # type: ignore[arg-type]
    assert_equal_batches(first, second)
    assert sum(len(batch["input_ids"]) for batch in first) == len(rows)
    causal = list(causal_lm_validation(rows, vocabulary=vocabulary, batch_size=4))
    assert sum(int((batch["input_ids"] >= 10).sum()) for batch in causal) == rows.num_tokens


def encoded(lengths: list[int], *, max_length: int = 1000, pads_left: bool = False) -> EncodedExamples:
    ids = np.concatenate([np.full(length, number + 10) for number, length in enumerate(lengths)])
    return EncodedExamples(
        ids=ids.astype(np.int32),
        token_types=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.arange(len(lengths)),
        num_truncated=0,
        max_length=max_length,
        pads_left=pads_left,
    )


@pytest.mark.parametrize("count", [1, 7, 64, 450])
def test_classification_visits_every_example_once_per_epoch(count: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=count).tolist()
    source = ClassificationSource(encoded(lengths), pad_id=0, micro_batch_size=2, accumulation_steps=2, seed=0)
    assert source.steps_per_epoch == -(-count // 4)
    for epoch in (0, 1):
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        batches = [batch for step in steps for batch in source.step(step)]
        assert sorted(torch.cat([batch["labels"] for batch in batches]).tolist()) == list(range(count))
        for batch in batches:
            width = batch["input_ids"].shape[1]
            longest = int(batch["attention_mask"].sum(dim=1).max())
            assert width % 8 == 0
            assert longest <= width < longest + 8


def test_classification_steps_are_pure_and_grouped_by_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, size=500).tolist()
    make = lambda: ClassificationSource(encoded(lengths), pad_id=0, micro_batch_size=8, seed=1)  # noqa: E731
    source = make()
    batches = [source.step(step)[0] for step in range(source.steps_per_epoch)]
    assert_equal_batches(make().step(40), [batches[40]])
    filled = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert filled / sum(batch["input_ids"].numel() for batch in batches) > 0.9
    again = [source.step(source.steps_per_epoch + step)[0]["labels"].tolist() for step in range(3)]
    assert again != [batch["labels"].tolist() for batch in batches[:3]]


@pytest.mark.parametrize("count", COUNTS)
def test_shares_of_classified_examples_are_as_wide_as_the_micro_batch(count: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=44).tolist()  # the last micro-batch has 8
    source = ClassificationSource(encoded(lengths), pad_id=0, micro_batch_size=9, accumulation_steps=2, seed=0)
    for step in range(source.steps_per_epoch):
        shares = [source.step(step, share=(index, count)) for index in range(count)]
        assert_equal_batches([joined(list(parts)) for parts in zip(*shares, strict=True)], source.step(step))


def test_a_last_batch_too_small_to_share_is_refused_at_once() -> None:
    source = ClassificationSource(encoded([5] * 21), pad_id=0, micro_batch_size=9, seed=0)
    with pytest.raises(InputError, match=r"loop.micro_batch_size: 4 .* micro-batch of 3 row"):
        source.step(0, share=(0, 4))


@pytest.mark.parametrize(("longest", "width"), [(97, 100), (100, 100), (93, 96)])
def test_padding_does_not_go_beyond_what_a_model_takes(longest: int, width: int) -> None:
    examples = encoded([5, longest], max_length=100)
    (batch,) = classification_batches(examples, pad_id=0, batch_size=2)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, width)


def test_examples_are_padded_on_the_tokenizers_side(tokenizer: Any) -> None:
    examples = Examples(TASKS["rte"], ["ka lo", "mi"], ["ne", "ru"], np.array([0, 1]), ["a:1", "a:2"], SkipLog())
    padded = {}
    for side in ("right", "left"):
        chosen = copy.deepcopy(tokenizer)
        chosen.padding_side = side
        encoding = encode_examples(examples, tokenizer=chosen, max_length=16, token_type_ids=True)
        (padded[side],) = classification_batches(encoding, pad_id=tokenizer.pad_token_id, batch_size=2)
        texts = (examples.texts, examples.pairs)
        expected = chosen(*texts, padding="longest", pad_to_multiple_of=8, return_token_type_ids=True)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert padded[side][name].tolist() == expected[name]
    assert not torch.equal(padded["left"]["input_ids"], padded["right"]["input_ids"])


def test_classification_validation_keeps_the_order() -> None:
    batches = list(classification_batches(encoded([3, 9, 4, 20, 1]), pad_id=0, batch_size=2))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def test_encoding_counts_what_it_cuts(tokenizer: Any) -> None:
    examples = Examples(
        task=TASKS["stsb"],
        texts=["ka lo", "ka " * 50, "mi"],
        pairs=["ne", "lo", "ru " * 50],
        labels=np.array([0.5, 1.0, 5.0], dtype=np.float32),
        places=["a:1", "a:2", "a:3"],
        skipped=SkipLog(),
    )
    result = encode_examples(examples, tokenizer=tokenizer, max_length=16, token_type_ids=True)
    assert result.num_truncated == 2
    assert result.lengths.max() == 16
    first = slice(*result.offsets[:2])
    expected = tokenizer("ka lo", "ne", return_token_type_ids=True)
    assert result.ids[first].tolist() == expected["input_ids"]
    assert result.token_types is not None
    assert result.token_types[first].tolist() == expected["token_type_ids"]
    batch = next(classification_batches(result, pad_id=0, batch_size=3))
    assert batch["labels"].dtype == torch.float32
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
