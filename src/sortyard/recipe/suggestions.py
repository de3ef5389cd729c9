"""Guesses which key a misspelt or misplaced one was meant to be."""

from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches

from sortyard.recipe.problems import dotted

MAX_SUGGESTIONS = 2


def _closeness(typed: tuple[str, ...], known: tuple[str, ...]) -> tuple[bool, int, float]:
    shared = sum(1 for a, b in zip(typed, known, strict=False) if a == b)
    return typed[-1] == known[-1], shared, SequenceMatcher(None, dotted(typed), dotted(known)).ratio()


def suggest(typed: tuple[str, ...], known: Sequence[tuple[str, ...]]) -> list[str]:
    """Lists the known keys nearest to an unknown one, best first.

    A key of the same name elsewhere comes first, then close spellings in the same section, then anywhere.

    Args:
        typed: The unknown key's path.
        known: The paths of every known key.

    Returns:
        At most two dotted keys; empty when nothing is near.
    """
    siblings = [path for path in known if path[:-1] == typed[:-1]]
    for pool in (siblings, known):
        names = {path[-1] for path in pool}
        near = set(get_close_matches(typed[-1], names, n=3, cutoff=0.7))
        near |= {name for name in names if len(typed[-1]) >= 3 and name.startswith(typed[-1])}
        ranked = sorted(((_closeness(typed, path), path) for path in pool if path[-1] in near), reverse=True)
        if ranked:
            best = ranked[0][0]
            equals = [path for close, path in ranked if close[:2] == best[:2] and close[2] > best[2] - 0.1]
            return [dotted(path) for path in equals[:MAX_SUGGESTIONS]]
    return []


def did_you_mean(typed: tuple[str, ...], known: Sequence[tuple[str, ...]]) -> str:
    """Writes the suggestions as `; did you mean a or b?`, or nothing."""
    found = suggest(typed, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def near_word(word: object, words: Sequence[object]) -> str:
    """Writes the nearest allowed word as `; did you mean x?`, or nothing."""
    found = get_close_matches(str(word), [str(w) for w in words], n=1)
    return f"; did you mean {found[0]}?" if found else ""
