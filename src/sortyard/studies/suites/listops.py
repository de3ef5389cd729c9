"""ListOps: nested lists of digits with one digit as the answer, so that every part of a long input matters.

Source of the task: Nangia and Bowman (2018), in the sizes of Long Range Arena: depth 10, up to 10 arguments, 500 to
2,000 elements. The generator is ours; its expressions are others than those of the arena's files.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sortyard.errors import InputError

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int(statistics.median(values)),
    "SM": lambda values: sum(values) % 10,
}
_NAMES = tuple(OPERATORS)
TRIES = 10_000  # for each expression


@dataclass(frozen=True)
class ListOpsSizes:
    """How large the expressions are.

    Attributes:
        depth: Levels of lists in each other.
        arguments: Elements of a list at most, at least 2.
        shortest: Elements of an expression; an operator with its bracket, a digit and a closing bracket count 1 each.
        longest: The same.
        list_prob: Chance of an argument to be a list.
    """

    depth: int = 10
    arguments: int = 10
    shortest: int = 500
    longest: int = 2000
    list_prob: float = 0.25


@dataclass(frozen=True)
class Expression:
    """An expression such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, and its value."""

    text: str
    value: int


class _TooLongError(Exception):
    pass


def generate(count: int, *, sizes: ListOpsSizes, seed: int) -> list[Expression]:
    """Draw different expressions.

    Args:
        count: How many.
        sizes: Of each.
        seed: Of the drawing; another number of them begins with the same ones.

    Returns:
        The expressions, in the order of their drawing.

    Raises:
        InputError: Expressions of these sizes are too rare.
    """
    generator = random.Random(seed)
    found: dict[str, Expression] = {}
    for _ in range(TRIES * (count + 1)):
        if len(found) == count:
            return list(found.values())
        words: list[str] = []
        try:
            value = _draw_list(words, generator=generator, sizes=sizes, depth=1)
        except _TooLongError:
            continue
        if len(words) >= sizes.shortest:
            text = " ".join(words)
            found[text] = Expression(text, value)
    raise InputError(f"ListOps: these sizes hardly ever give an expression: {sizes}; allow shorter ones")


def _draw_list(words: list[str], *, generator: random.Random, sizes: ListOpsSizes, depth: int) -> int:
    """Append a list's words, and return its value."""
    name = generator.choice(_NAMES)
    words.append(f"[{name}")
    values = []
    for _ in range(generator.randint(2, sizes.arguments)):
        if len(words) >= sizes.longest:
            raise _TooLongError
        if depth < sizes.depth and generator.random() < sizes.list_prob:
            values.append(_draw_list(words, generator=generator, sizes=sizes, depth=depth + 1))
        else:
            values.append(generator.randrange(10))
            words.append(str(values[-1]))
    words.append("]")
    if len(words) > sizes.longest:
        raise _TooLongError
    return OPERATORS[name](values)
