"""Several commands at a time."""

import os
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.studies.crew import Crew, Ended


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs waitid")
def test_a_process_that_ends_just_before_it_is_stopped_is_told_of(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def ended(item: str, end: Ended) -> None:
        told.append((item, end.status))
        if len(told) == 1:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # the other one has ended, and nobody has asked
            raise InputError("stop the others")

    crew = Crew[str](words=lambda _: ["recipes"], log=lambda item: tmp_path / item, ended=ended, began=lambda _: None)
    with pytest.raises(InputError, match="stop the others"):
        crew.work(["a", "b"], at_once=2)
    assert sorted(told) == [("a", 0), ("b", 0)]
