"""The runner of transformers' own tests: what becomes of tests that cannot be fetched, and of ones that fail."""

import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.transformers_suite import run

REPORT = """<testsuite><testcase name="good"/><testcase name="bad"><failure message="no"/></testcase>
<testcase name="left"><skipped message="needs a GPU"/></testcase></testsuite>"""


def start(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    run.main()


@pytest.mark.parametrize(
    "failure", [subprocess.CalledProcessError(1, "pip"), subprocess.TimeoutExpired("pip", 300)], ids=["refused", "slow"]
)
def test_what_cannot_be_fetched_fails_unless_it_is_optional(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: list[str], **_: Any) -> None:
        assert words[1:4] == ["-m", "pip", "download"]
        raise failure

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(SystemExit, match="cannot be fetched; give one with --source"):
        start(monkeypatch, "--tests", tmp_path)
    start(monkeypatch, "--tests", tmp_path, "--optional")
    assert "NOT RUN" in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 1])
def test_optional_tests_that_run_and_fail_are_failures(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transformers-0" / "tests").mkdir(parents=True)
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "transformers-0", arcname="transformers-0")

    def pretend(words: list[str], *, cwd: Path, **_: Any) -> SimpleNamespace:
        (cwd / "report.xml").write_text(REPORT)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(subprocess, "run", pretend)
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, "--optional", "--tests", tmp_path / "kept", "--source", tmp_path / "source.tar.gz")
    assert ended.value.code == status
    shown = capsys.readouterr().out
    assert "passed 1, failed 1, skipped 1" in shown
    assert "failed: bad" in shown
