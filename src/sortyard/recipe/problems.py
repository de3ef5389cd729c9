"""What is wrong with a recipe: all of it, each with its place and a remedy."""

from collections.abc import Sequence
from dataclasses import dataclass

from sortyard.errors import InputError

OVERRIDE = "override "
KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """Writes a key path as users do, `pretrain.loop.steps`."""
    return ".".join(str(part) for part in path)


@dataclass(frozen=True)
class Problem:
    """One mistake: the place that set the value, the key, and what to do."""

    where: str
    path: KeyPath
    text: str

    def __str__(self) -> str:
        key = "" if not self.path or self._is_named else f"{dotted(self.path)}: "
        return f"{self.where}: {key}{self.text}"

    @property
    def _is_named(self) -> bool:
        """Whether the place is an override that names the key itself, or one below it."""
        word = self.where.removeprefix(OVERRIDE)
        return word != self.where and f"{word.partition('=')[0]}.".startswith(f"{dotted(self.path)}.")


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raises one InputError that holds every problem, one a line; does nothing when there is none.

    Raises:
        InputError: There is at least one problem.
    """
    if problems:
        raise InputError("\n".join(str(problem) for problem in problems))
