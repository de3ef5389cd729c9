"""Samples: even over all of a stream, the same every time, and never larger than asked."""

import tracemalloc

import numpy as np
import pytest

from sortyard.tokenizer import sampling
from sortyard.tokenizer.sampling import sample_texts


def sample(texts: list[str], max_characters: int) -> list[str]:
    return list(sample_texts(iter(texts), max_characters=max_characters, say=lambda _: None))


@pytest.mark.parametrize("max_characters", [0, 3000, 10**9])
def test_what_is_within_the_bound_is_passed_on_in_order(max_characters: int) -> None:
    texts = [f"{number:03d}" for number in range(1000)]
    assert sample(texts, max_characters) == texts


@pytest.mark.parametrize("share", [0.5, 0.1, 0.013])
def test_a_sample_is_spread_evenly_and_nearly_as_large_as_allowed(share: float) -> None:
    lengths = np.random.default_rng(0).integers(10, 50, size=20_000)
    texts = [f"{number:0{length}d}" for number, length in enumerate(lengths)]
    limit = int(share * lengths.sum())
    taken = sample(texts, limit)
    assert taken == sample(texts, limit)
    assert limit - 100 <= sum(map(len, taken)) <= limit
    numbers = np.array([int(text) for text in taken])
    assert (np.diff(numbers) > 0).all()
    counts = np.histogram(numbers, bins=20, range=(0, 20_000))[0]
    assert abs(counts - counts.mean()).max() <= 3


def test_a_text_longer_than_the_bound_is_the_sample() -> None:
    assert sample(["x" * 50, "y" * 70, "z" * 60], 10) == ["x" * 50]


def test_no_more_is_held_than_asked() -> None:
    tracemalloc.start()
    taken = sample_texts(("x" * 10_000 for _ in range(5000)), max_characters=1_000_000, say=lambda _: None)
    assert sum(map(len, taken)) == 1_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000


def test_progress_is_told_while_reading_and_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_REPORT_SECONDS", 0.0)
    told: list[str] = []
    assert len(list(sample_texts(["abcd"] * 4, max_characters=8, say=told.append))) == 2
    assert told == [
        "tokenizer 4 characters read",
        "tokenizer 8 characters read",
        "tokenizer 12 characters read",
        "tokenizer 16 characters read",
        "tokenizer is trained on 8 of the 16 characters read (tokenizer.max_characters), taken evenly from all of them",
        "tokenizer 50 % counted",
        "tokenizer 100 % counted",
    ]
