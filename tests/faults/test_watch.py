"""The watch over processes that hang: what it takes for silence, and what not."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

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


class Ended(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def end(status: int) -> None:
        found.append(status)
        raise Ended

    monkeypatch.setattr("sortyard.parallel.watch.os._exit", end)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    return found


def _beat_until_the_end(watch: Watch, ends: list[int]) -> None:
    until = time.monotonic() + 20
    while not ends and time.monotonic() < until:
        watch.beat("evaluating after step 3", alone=True)
        time.sleep(TIMEOUT / 10)


def test_a_silent_neighbour_is_named_by_one_that_works_alone(
    tmp_path: Path, ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    _left_by_a_killed_run(tmp_path)
    with Watch(tmp_path, rank=0, size=2, timeout_seconds=TIMEOUT) as watch:
        _beat_until_the_end(watch, ends)
    assert ends == [1]
    said = capfd.readouterr().err
    assert "process 1 (number 12 on here) is still saving" in said
    assert "it waits for no other process" not in said


def test_one_that_cannot_say_that_it_gives_up_ends_all_the_same(
    tmp_path: Path, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    _left_by_a_killed_run(tmp_path)
    with Watch(tmp_path, rank=0, size=2, timeout_seconds=TIMEOUT) as watch:
        _beat_until_the_end(watch, ends)
    assert ends == [1]


def test_a_sign_of_life_may_fail_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[int] = []
    utime = os.utime

    def unsteady(file: int) -> None:
        signs.append(file)
        if len(signs) == 1:
            raise OSError(5, "Input/output error")
        utime(file)

    monkeypatch.setattr("sortyard.parallel.watch.os.utime", unsteady)
    with Noted(tmp_path, rank=0, size=1, timeout_seconds=TIMEOUT):
        time.sleep(TIMEOUT)
    assert len(signs) > 1


def test_while_all_were_halted_nobody_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halted = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + halted[0])
    monkeypatch.setattr("sortyard.parallel.watch.time", clock)
    with Noted(tmp_path, rank=0, size=1, timeout_seconds=TIMEOUT) as watch:
        watch.beat("computing step 1")
        halted[0] = 3600.0
        time.sleep(TIMEOUT / 2)
        assert watch.gave_up_after is None
        assert _gave_up(watch)  # what hangs afterwards is found as before
        assert watch.gave_up_after < 3600
