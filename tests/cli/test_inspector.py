"""`sortyard inspect` on the command line: frozen pages, and a server that Ctrl-C ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.cli.conftest import SOURCE
from tests.reports.inspector.tiny import SENTENCE, save


def test_freezes_a_text_from_a_file(sortyard: Callable, tmp_path: Path) -> None:
    save(tmp_path / "model")
    (tmp_path / "text.txt").write_text(SENTENCE)
    ended = sortyard("inspect", "model", "--input", "text.txt", "--out", "page.html", "--layer", "2", "--json")
    assert ended.status == 0, ended.err
    assert (ended.json["tokens"], ended.json["layer"], ended.json["heads"]) == (18, 1, 4)
    assert (tmp_path / "page.html").stat().st_size == ended.json["bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "page.html"), "--out needs a text to freeze: give --text or --input"),
        (("--out", "page.html", "--text", "a", "--input", "b"), "give --text or --input, one of them"),
        (("--text", "a"), "belong to --out PAGE.html"),
        (("--out", "page.html", "--input", "b"), "--input b: there is no such file"),
        (("--out", "page.html", "--text", " "), "text: is empty"),
        (("--out", "no/page.html", "--text", "a"), "--out no/page.html: must be a file in a folder that exists"),
        (("--out", "page.html", "--text", "cat", "--layer", "7"), "layer: 6 is no layer with buckets"),
    ],
)
def test_mistakes(sortyard: Callable, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    save(tmp_path / "model")
    ended = sortyard("inspect", "model", *words)
    assert ended.status == 2
    assert message in ended.err


def test_untrained_head_is_refused(sortyard: Callable, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", head="masked_lm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["SortyardForSequenceClassification"]}))
    assert "weights are missing" in sortyard("inspect", "model", "--text", "cat", "--out", "page.html").err


@pytest.mark.slow
def test_serves_until_interrupted(tmp_path: Path) -> None:
    save(tmp_path / "model")
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sortyard", "inspect", "model", "--no-browser", "--json"]
    running = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert running.stdout is not None
        url = json.loads(running.stdout.readline())["url"]
        connection = HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=20)
        connection.request("GET", "/")
        assert b"plotly" in connection.getresponse().read()
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
