"""ListOps: the answers are those of an evaluator that shares nothing with the generator."""

import re
from collections import Counter

import pytest

from sortyard.errors import InputError
from sortyard.studies.suites.listops import ListOpsSizes, generate

SMALL = ListOpsSizes(depth=6, arguments=5, shortest=10, longest=80)


def evaluate(text: str) -> int:
    """Replace the innermost lists by their values until one digit is left."""
    while match := re.search(r"\[(MIN|MAX|MED|SM)((?: \d)+) \]", text):
        values = sorted(int(word) for word in match[2].split())
        middle = len(values) // 2
        median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2
        value = {"MIN": values[0], "MAX": values[-1], "MED": median, "SM": sum(values) % 10}[match[1]]
        text = text[: match.start()] + str(value) + text[match.end() :]
    return int(text)


@pytest.mark.parametrize("sizes", [SMALL, ListOpsSizes()], ids=["small", "of the arena"])
def test_answers_and_sizes(sizes: ListOpsSizes) -> None:
    found = generate(60, sizes=sizes, seed=3)
    assert len({each.text for each in found}) == 60
    for each in found:
        words = each.text.split()
        assert sizes.shortest <= len(words) <= sizes.longest
        assert evaluate(each.text) == each.value
        depth = max(each.text[:i].count("[") - each.text[:i].count("]") for i in range(len(each.text)))
        assert depth <= sizes.depth
    assert set(Counter(each.value for each in found)) > {0, 9}
    assert {word for each in found for word in each.text.split() if word.startswith("[")} == {
        "[MIN", "[MAX", "[MED", "[SM"
    }  # fmt: skip


def test_the_seed_decides_and_more_begin_with_the_same() -> None:
    assert generate(5, sizes=SMALL, seed=1) == generate(9, sizes=SMALL, seed=1)[:5]
    assert generate(5, sizes=SMALL, seed=1) != generate(5, sizes=SMALL, seed=2)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="hardly ever"):
        generate(1, sizes=ListOpsSizes(depth=1, arguments=3, shortest=50, longest=60), seed=0)
