"""Masking: the asked share, whole words, and nothing but (seed, epoch, sample) decides."""

from typing import Any

import numpy as np
import pytest

from sortyard.data.masking import IGNORED, mask_tokens
from sortyard.data.options import MaskingOptions
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def ids(tokenizer: Any, texts: list[str]) -> np.ndarray:
    return np.array(tokenizer(" ".join(texts[:40]), verbose=False)["input_ids"], dtype=np.int64)


def masked(
    ids: np.ndarray, vocabulary: Vocabulary, *, sample: int = 0, epoch: int = 0, seed: int = 0, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    chosen = MaskingOptions(**options)
    return mask_tokens(ids, epoch=epoch, sample=sample, seed=seed, options=chosen, vocabulary=vocabulary)


@pytest.mark.parametrize("whole_word", [True, False])
@pytest.mark.parametrize("probability", [0.15, 0.3, 0.5])
def test_the_share_is_the_one_asked_for(
    ids: np.ndarray, vocabulary: Vocabulary, probability: float, whole_word: bool
) -> None:
    inputs, labels = masked(ids, vocabulary, probability=probability, whole_word=whole_word)
    targets = labels != IGNORED
    assert targets.mean() == pytest.approx(probability, abs=0.01)
    assert (inputs[~targets] == ids[~targets]).all()
    assert (labels[targets] == ids[targets]).all()
    assert not vocabulary.special[ids[targets]].any()


def test_shares_of_mask_random_and_kept(ids: np.ndarray, vocabulary: Vocabulary) -> None:
    inputs, labels = masked(np.tile(ids, 5), vocabulary)
    targets = labels != IGNORED
    assert (inputs[targets] == vocabulary.mask_id).mean() == pytest.approx(0.8, abs=0.02)
    assert (inputs[targets] == labels[targets]).mean() == pytest.approx(0.1, abs=0.02)
    assert not vocabulary.special[inputs[targets & (inputs != vocabulary.mask_id)]].any()


def test_words_are_masked_whole(ids: np.ndarray, vocabulary: Vocabulary) -> None:
    _, labels = masked(ids, vocabulary)
    targets = labels != IGNORED
    goes_on = vocabulary.continues_word[ids[1:]]
    assert goes_on.sum() > 100
    assert (targets[1:][goes_on] == targets[:-1][goes_on]).all()


def test_a_piece_cut_inside_a_word_is_a_word_of_its_own(vocabulary: Vocabulary) -> None:
    inner = int(np.flatnonzero(vocabulary.continues_word)[0])
    ids = np.array([vocabulary.cls_id, inner, vocabulary.sep_id])
    _, labels = masked(ids, vocabulary)
    assert labels.tolist() == [IGNORED, inner, IGNORED]


def test_every_row_has_a_target_unless_it_has_no_token(vocabulary: Vocabulary) -> None:
    ordinary = int(np.flatnonzero(~vocabulary.special)[0])
    _, labels = masked(np.array([vocabulary.cls_id, ordinary, ordinary, vocabulary.sep_id]), vocabulary)
    assert (labels != IGNORED).any()
    _, labels = masked(np.array([vocabulary.cls_id, vocabulary.sep_id]), vocabulary)
    assert (labels == IGNORED).all()


def test_masks_depend_on_seed_epoch_and_sample_only(ids: np.ndarray, vocabulary: Vocabulary) -> None:
    first = masked(ids, vocabulary, seed=1, epoch=2, sample=3)
    np.random.default_rng(0).random(10)
    for values, again in zip(first, masked(ids, vocabulary, seed=1, epoch=2, sample=3), strict=True):
        np.testing.assert_array_equal(values, again)
    for changed in ({"seed": 0}, {"epoch": 0}, {"sample": 0}):
        other = masked(ids, vocabulary, **{"seed": 1, "epoch": 2, "sample": 3, **changed})
        assert (other[1] != first[1]).any()


def test_shares_have_to_add_up() -> None:
    with pytest.raises(ValueError, match=r"must be 1; they are 1\.1"):
        MaskingOptions(mask_share=0.9)


def test_a_tokenizer_without_mask_token_is_refused(ids: np.ndarray, tokenizer: Any, texts: list[str]) -> None:
    other = train_tokenizer(texts[:5], TokenizerOptions(vocab_size=300))
    other.mask_token = None
    with pytest.raises(InputError, match="no mask token"):
        masked(ids[:3], Vocabulary.of(other))


def test_word_borders_of_a_byte_level_vocabulary(texts: list[str]) -> None:
    bpe = train_tokenizer(["hello worldwide wonders, hello"] * 3, TokenizerOptions(algorithm="bpe", vocab_size=300))
    vocabulary = Vocabulary.of(bpe)
    tokens = bpe.convert_ids_to_tokens(range(vocabulary.size))
    continues = {token: bool(flag) for token, flag in zip(tokens, vocabulary.continues_word, strict=True)}
    assert not continues["\u0120hello"]
    assert not continues["\u0120"]
    assert not continues[","]
    assert not continues["[MASK]"]
    assert continues["w"]
