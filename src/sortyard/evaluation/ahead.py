"""An iterator that is run ahead of its reader, in a thread."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1


def read_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Produce items in a thread of their own, one ahead of the reader.

    Args:
        items: what to iterate over; only the thread does.

    Yields:
        The items, in order. An error of the iterator is raised in its place. When the generator is closed, or dropped,
        the thread ends after the item that it is at; it never keeps the process from ending.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(is_item: bool, value: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((is_item, value), timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised again in the reader
            put(False, error)
        else:
            put(False, None)

    threading.Thread(target=produce, name="read-ahead", daemon=True).start()
    try:
        while True:
            is_item, value = waiting.get()
            if is_item:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        stopped.set()
