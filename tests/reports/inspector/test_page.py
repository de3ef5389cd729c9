"""The frozen page: everything in one file, small, offline, and honest about what it leaves out."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sortyard.errors import InputError
from sortyard.jobs.inspecting import freeze
from sortyard.reports.inspector import page as pages
from sortyard.reports.inspector.inspector import Inspector
from sortyard.reports.inspector.page import Question, frozen_page, live_page
from tests.reports.inspector.tiny import LONG, SENTENCE, model, tokenizer
from tests.reports.test_report import outline


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(model(), tokenizer=tokenizer(), name="<b>tiny</b>")


def embedded(html: str) -> Any:
    return json.loads(re.findall(r'id="data">(.*?)</script>', html, flags=re.DOTALL)[0])


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_frozen_page_holds_every_answer(inspector: Inspector, tmp_path: Path) -> None:
    question = Question(LONG, before="the dog", other="a mat")
    found = freeze(inspector, question, out=tmp_path / "page.html")
    page, html = outline(tmp_path / "page.html"), (tmp_path / "page.html").read_text()
    assert found["bytes"] == (tmp_path / "page.html").stat().st_size < 6_000_000
    assert all(load.startswith("#") for load in page.loads)
    assert set(page.references) <= set(page.ids)
    assert "connect-src" not in html
    frozen = embedded(html)["frozen"]
    assert len(frozen["units"]) == found["heads"] == 2 * 2 * 2  # sides, layers, heads
    unit = unpacked(frozen["units"]["1|0|1"])
    assert unit["map"] == json.loads(json.dumps(inspector.map(LONG, layer=0, head=1, before="a mat")))
    assert len(unit["rows"]) == 68
    row = inspector.row(LONG, layer=0, head=1, query=40, before="a mat")
    assert unit["rows"]["40"] == json.loads(json.dumps(row))


def test_what_finds_no_room_is_left_out(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FROZEN_BYTES", 30_000)
    monkeypatch.setattr(pages, "FIRST_BYTES", 15_000)
    monkeypatch.setattr(pages, "OTHER_BYTES", 9_000)
    html, found = frozen_page(inspector, Question(LONG, layer=1, head=0))
    units = embedded(html)["frozen"]["units"]
    assert 1 <= found["heads"] == len(units) < 4
    assert next(iter(units)) == "0|1|0"
    assert len(unpacked(units["0|1|0"])["rows"]) < 66


def test_live_page_asks_its_server_only(inspector: Inspector) -> None:
    html = live_page(inspector)
    assert "connect-src 'self'" in html
    assert "&lt;b&gt;tiny" in html
    assert embedded(html)["frozen"] is None


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(" "), "text: is empty"),
        (Question(SENTENCE, layer=5), "layer: 5 is no layer with buckets"),
        (Question(SENTENCE, head=7), "head: 7 is not there"),
    ],
    ids=["empty", "layer", "head"],
)
def test_bad_questions(inspector: Inspector, question: Question, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        freeze(inspector, question, out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_dense_model_freezes(tmp_path: Path) -> None:
    dense = Inspector(model(attention="dense"), tokenizer=tokenizer(), name="dense")
    assert freeze(dense, Question(SENTENCE), out=tmp_path / "page.html")["heads"] == 0
