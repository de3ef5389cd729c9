"""Running the command line in this process, or as a program of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sortyard.cli.main import main
from tests.cli.adapting import SPARSE, write_text

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


@pytest.fixture
def sortyard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs a command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Ended:
        capsys.readouterr()
        status = main(words)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `python -m sortyard` in a process of its own."""

    def run(*words: str, code: str | None = None) -> Ended:
        start = ["-c", code] if code is not None else ["-m", "sortyard"]
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(
            [sys.executable, "-W", "error", *start, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=300,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def sparse(sortyard: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Writes a text, and an upcycled folder whose attention is sparse at its 48 positions."""
    from tests.cli.test_upcycle import write_dense

    def make(name: str = "sparse", *words: str, head: str = "masked_lm") -> Path:
        write_text(tmp_path)
        if not (tmp_path / "dense").exists():
            write_dense(tmp_path / "dense", head=head)
        ended = sortyard("upcycle", "dense", "--out", name, *SPARSE, *words)
        assert ended.status == 0, ended.err
        return tmp_path / name

    return make


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for an address, a connection or the hub's client fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)
