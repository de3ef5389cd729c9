"""Bugs that change what is learned without any error, each put back for as long as a test asks."""

from collections.abc import Iterator
from contextlib import contextmanager

BUGS: tuple[str, ...] = ()


@contextmanager
def put_back(name: str) -> Iterator[None]:
    yield
