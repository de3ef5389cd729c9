"""Processes that sortyard starts itself."""

import errno
import subprocess
import sys
from typing import Any

import pytest

from sortyard.parallel.launch import start_processes


def test_when_one_cannot_be_started_those_before_it_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def popen(_: Any, **options: Any) -> Any:
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr("sortyard.parallel.launch.subprocess.Popen", popen)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        start_processes(["pretrain"], count=2, max_restarts=0, environment={})
    assert started[0].poll() is not None
