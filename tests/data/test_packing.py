"""Packing: every token of every document is in exactly one row, and rows keep documents apart."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sortyard.data import documents as documents_module
from sortyard.data.documents import split_documents
from sortyard.data.packing import PackedRows
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError
from tests.data.conftest import MemoryDocuments

CLS, SEP = 2, 3
VOCABULARY = Vocabulary(
    size=5, pad_id=0, cls_id=CLS, sep_id=SEP, mask_id=4, unk_id=1,
    special=np.ones(5, dtype=np.bool_), continues_word=np.zeros(5, dtype=np.bool_),
)  # fmt: skip


def packed(lengths: list[int], **options: object) -> PackedRows:
    settings_ = {"sequence_length": 32, "vocabulary": VOCABULARY, **options}
    return PackedRows(MemoryDocuments(lengths), **settings_)  # type: ignore[arg-type]


def check_rows(rows: PackedRows) -> np.ndarray:
    """Check each row's shape and return the ordinary tokens of all rows, in order."""
    tokens = []
    for index in range(len(rows)):
        ids, boundaries = rows.row(index)
        assert boundaries[0] == 0
        assert boundaries[-1] == len(ids) <= rows.sequence_length
        for first, end in pairwise(boundaries):
            assert ids[first] == CLS
            assert ids[end - 1] == SEP
            tokens.append(ids[first + 1 : end - 1])
            assert len(tokens[-1]) > 0
            assert (np.diff(tokens[-1]) == 1).all()
    return np.concatenate(tokens)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    width=st.sampled_from([8, 20, 32, 64]),
    packing=st.booleans(),
)
def test_every_token_is_in_exactly_one_row(lengths: list[int], width: int, packing: bool) -> None:
    rows = packed(lengths, sequence_length=width, packing=packing)
    np.testing.assert_array_equal(check_rows(rows), np.arange(sum(lengths)) + 10)
    assert rows.num_tokens == sum(lengths)


def test_rows_are_filled_up_to_the_special_tokens_of_a_cut() -> None:
    rows = packed([10, 100, 3, 12, 5])
    assert [np.diff(rows.row(index).boundaries).tolist() for index in range(len(rows))] == [
        [12, 19],
        [32],
        [32],
        [25, 5],
        [14, 7],
    ]


def test_rows_that_begin_or_end_at_a_special_token_hold_no_empty_piece() -> None:
    assert [np.diff(packed([length, 40]).row(0).boundaries).tolist() for length in (26, 27, 28, 29, 30)] == [
        [28, 3],
        [29],
        [30],
        [31],
        [31],
    ]
    assert len(packed([29])) == 1
    assert [len(packed([30]).row(index).ids) for index in (0, 1)] == [31, 3]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=8, max_size=60),
    most_runs=st.integers(1, 5),
    fraction=st.sampled_from([0.1, 0.3, 0.5]),
    packing=st.booleans(),
)
def test_runs_of_held_out_documents_lose_and_share_no_token(
    lengths: list[int], most_runs: int, fraction: float, packing: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "MOST_RUNS", most_runs)
        train, held_out = (
            packed(lengths, split=name, validation_fraction=fraction, seed=1, packing=packing)
            for name in ("train", "validation")
        )
    tokens = [check_rows(rows).tolist() for rows in (train, held_out)]
    assert sorted(tokens[0] + tokens[1]) == list(range(10, 10 + sum(lengths)))
    assert all(rows == sorted(rows) for rows in tokens)
    assert held_out.num_documents == round(fraction * len(lengths)) == len(lengths) - train.num_documents


def test_without_packing_a_row_holds_one_piece() -> None:
    rows = packed([10, 40, 3], packing=False)
    assert [len(rows.row(index).ids) for index in range(len(rows))] == [12, 32, 12, 5]


def test_a_row_out_of_range_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="row 1 of 1"):
        packed([5]).row(1)


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_validation_documents_are_never_trained_on(fraction: float) -> None:
    lengths = [7, 90, 30] * 20
    splits = [packed(lengths, split=name, validation_fraction=fraction, seed=3) for name in ("train", "validation")]
    train, held_out = (set(check_rows(rows).tolist()) for rows in splits)
    assert not train & held_out
    assert len(train) + len(held_out) == sum(lengths)
    assert splits[1].num_documents == round(fraction * 60)


def test_the_split_goes_by_the_seed() -> None:
    first, again, other = (
        split_documents(100, split="validation", validation_fraction=0.2, seed=seed).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("num_documents", [2, 3, 1000, 10**9])
@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_a_split_is_a_small_table_and_spread_over_all_documents(num_documents: int, fraction: float) -> None:
    options = {"validation_fraction": fraction, "seed": 0}
    held_out, train = (
        split_documents(num_documents, split=split, **options)  # type: ignore[arg-type]
        for split in ("validation", "train")
    )
    assert max(len(held_out), len(train)) <= documents_module.MOST_RUNS + 1
    assert np.diff(held_out).sum() == max(1, round(fraction * num_documents))
    both = np.concatenate([held_out, train])
    both = both[np.argsort(both[:, 0])]
    assert (both[1:, 0] == both[:-1, 1]).all()
    assert (both[0, 0], both[-1, 1]) == (0, num_documents)
    counts, _ = np.histogram(held_out[:, 0], bins=10, range=(0, num_documents))
    assert num_documents < 1000 or counts.max() - counts.min() < 5


@pytest.mark.parametrize(("documents", "fraction", "split"), [(1, 0.1, "train"), (9, 0.0, "validation")])
def test_an_empty_split_is_refused(documents: int, fraction: float, split: str) -> None:
    with pytest.raises(InputError, match=f"leaves none for {split}"):
        packed([50] * documents, split=split, validation_fraction=fraction)


def test_a_hundred_thousand_documents_take_seconds() -> None:
    documents = MemoryDocuments(np.random.default_rng(0).integers(1, 2000, size=100_000).tolist())
    begin = time.perf_counter()
    rows = PackedRows(documents, sequence_length=512, vocabulary=VOCABULARY)
    assert time.perf_counter() - begin < 5
    assert len(rows) > 190_000
    begin = time.perf_counter()
    for index in range(0, len(rows), 200):
        rows.row(index)
    assert time.perf_counter() - begin < 5
