"""The watch over processes that hang: what it takes for silence, and what not."""

import os
import time
from pathlib import Path

import pytest

from sortyard.parallel.watch import Watch

TIMEOUT = 0.4


class Noted(Watch):
    """Notes when it would have ended the process."""

    gave_up_after: float | None = None

    def _give_up(self, waited: float) -> None:
        self.gave_up_after = self.gave_up_after or waited


def _left_by_a_killed_run(folder: Path) -> Path:
    sign = folder / "process-1"
    sign.write_text("saving\n12 on here\n")
    yesterday = time.time() - 86_400
    os.utime(sign, (yesterday, yesterday))
    return sign


def _gave_up(watch: Noted) -> bool:
    until = time.monotonic() + 20
    while watch.gave_up_after is None and time.monotonic() < until:
        time.sleep(TIMEOUT / 10)
    return watch.gave_up_after is not None


def test_a_file_that_a_killed_run_left_counts_from_now_on(tmp_path: Path) -> None:
    _left_by_a_killed_run(tmp_path)
    with Noted(tmp_path, rank=0, size=2, timeout_seconds=TIMEOUT) as watch:
        assert not any("not been heard of" in suspect for suspect in watch.suspects())
        assert _gave_up(watch), "nobody came to take the file's place"
    assert watch.gave_up_after is not None
    assert watch.gave_up_after >= TIMEOUT


def test_a_neighbour_that_gives_signs_of_life_is_waited_for(tmp_path: Path) -> None:
    sign = _left_by_a_killed_run(tmp_path)
    with Noted(tmp_path, rank=0, size=2, timeout_seconds=TIMEOUT) as watch:
        until = time.monotonic() + 3 * TIMEOUT
        for second in range(1, 10_000):  # by a clock that is wrong by a day
            os.utime(sign, (second, second))
            time.sleep(TIMEOUT / 40)
            if time.monotonic() > until:
                break
        assert watch.gave_up_after is None


@pytest.mark.parametrize("limited", [True, False])
def test_only_what_is_limited_may_not_take_long(tmp_path: Path, limited: bool) -> None:
    with Noted(tmp_path, rank=0, size=1, timeout_seconds=TIMEOUT) as watch:
        watch.beat("computing step 1", limited=limited)
        time.sleep(3 * TIMEOUT)
        assert (watch.gave_up_after is not None) == limited
