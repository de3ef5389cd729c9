"""An even sample of a stream of texts, held within a number of characters."""

import time
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

Say = Callable[[str], None]
"""Takes one line about what is being done."""

_GOLDEN = (5**0.5 - 1) / 2
_REPORT_SECONDS = 5.0


def sample_texts(texts: Iterable[str], *, max_characters: int, say: Say) -> Iterator[str]:
    """Iterate over texts, in order; over an even sample of them if they have more than `max_characters` together.

    All are read, and no more than `max_characters` are ever held (unless a single text is longer, which is then the
    sample). Multiples of the golden ratio modulo 1 rank the texts, and those of the lowest ranks stay: however many
    these are, they are spread evenly over all. The same texts give the same sample.

    Args:
        texts: any number of them.
        max_characters: characters of the sample at most; 0 passes all texts on and holds none.
        say: told how far this is, and what share was taken where it is not all.
    """
    if not max_characters:
        yield from texts
        return
    pace = _Pace(say)
    kept: list[tuple[float, int, str]] = []  # a heap, the highest rank first
    num_kept = num_read = 0
    limit = 1.0
    for number, text in enumerate(texts):
        num_read += len(text)
        pace.tell(f"tokenizer {num_read:,} characters read")
        rank = number * _GOLDEN % 1
        if rank >= limit:
            continue
        heappush(kept, (-rank, number, text))
        num_kept += len(text)
        while num_kept > max_characters and len(kept) > 1:
            highest, _, dropped = heappop(kept)
            num_kept -= len(dropped)
            limit = -highest
    if num_kept < num_read:
        say(
            f"tokenizer is trained on {num_kept:,} of the {num_read:,} characters read "
            "(tokenizer.max_characters), taken evenly from all of them"
        )
    kept.sort(key=lambda each: each[1])
    done = 0
    for _, _, text in kept:
        yield text
        done += len(text)
        pace.tell(f"tokenizer {100 * done / num_kept:.0f} % counted")


class _Pace:
    """Says something no more often than every few seconds."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last = time.monotonic()

    def tell(self, message: str) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            self._say(message)
