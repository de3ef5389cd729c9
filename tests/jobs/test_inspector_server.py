"""The inspector's server: its answers, and everything it refuses."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from sortyard.errors import InputError
from sortyard.jobs.inspector_server import MAX_BODY_BYTES, InspectorServer
from sortyard.reports.inspector.inspector import Inspector
from tests.reports.inspector.tiny import SENTENCE, model, tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[InspectorServer]:
    inspector = Inspector(model(), tokenizer=tokenizer(), name="tiny")
    with InspectorServer(inspector, page="<p>the page</p>") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: InspectorServer, path: str, content: Any = None, *, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    sent = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method or ("GET" if body is None else "POST"), path, body=body, headers=sent | (headers or {}))
    answer = connection.getresponse()
    text, kind = answer.read().decode(), answer.getheader("Content-Type") or ""
    connection.close()
    return answer.status, json.loads(text) if kind.startswith("application/json") else text


def test_page_and_answers(server: InspectorServer) -> None:
    assert ask(server, "/") == (200, "<p>the page</p>")
    status, looked = ask(server, "/api/look", {"text": SENTENCE, "other": "a mat"})
    assert (status, len(looked["sides"]), len(looked["pairs"])) == (200, 2, 16)
    where = {"text": SENTENCE, "before": "a mat", "layer": 1, "head": 0}
    assert ask(server, "/api/map", where)[1]["size"] == 20
    status, row = ask(server, "/api/row", where | {"query": 3})
    assert (status, row["num_exact"] + row["num_summarised"]) == (200, 20)
    assert sum(row["mass"]) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("/api/look", {"text": " "}, "text: is empty; type a sentence"),
        ("/api/look", {"text": "cat " * 200}, "text: has 202 tokens"),
        ("/api/look", {"text": 3}, "text: must be a text"),
        ("/api/look", {"text": "cat", "other": 3}, "other: must be a text, or null"),
        ("/api/look", {}, "must be a JSON object with text, before, other"),
        ("/api/look", {"text": "cat", "file": "/etc/passwd"}, "must be a JSON object with"),
        ("/api/look", b"{broken", "the question is no JSON"),
        ("/api/look", b"[" * 100_000, "the question is no JSON"),
        ("/api/map", {"text": "cat", "layer": 9, "head": 0}, "layer: 9 is no layer with buckets"),
        ("/api/map", {"text": "cat", "layer": 0}, "head: must be a whole number"),
        ("/api/map", {"text": "cat", "layer": True, "head": 0}, "layer: must be a whole number"),
        ("/api/row", {"text": "cat", "layer": 0, "head": 0, "query": 99}, "query: 99 is not there"),
        ("/api/secrets", {"text": "cat"}, "there is no such question"),
    ],
)
def test_bad_questions_are_answered_clearly(server: InspectorServer, path: str, content: Any, words: str) -> None:
    status, answer = ask(server, path, content)
    assert status == 400
    assert words in answer["error"]


def test_size_is_bounded(server: InspectorServer) -> None:
    status, answer = ask(server, "/api/look", headers={"Content-Type": "application/json",
                         "Content-Length": str(MAX_BODY_BYTES + 1)}, method="POST")  # fmt: skip
    assert status == 400
    assert "text: is too long" in answer["error"]


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
    ids=["host", "host and port", "origin", "opaque origin"],
)
@pytest.mark.parametrize("content", [None, {"text": "cat"}], ids=["page", "question"])
def test_other_sites_are_refused(server: InspectorServer, headers: dict[str, str], content: Any) -> None:
    status, answer = ask(server, "/" if content is None else "/api/look", content, headers=headers)
    assert status == 403
    assert "its own page on this machine only" in answer["error"]


def test_forms_of_other_sites_are_refused(server: InspectorServer) -> None:
    status, answer = ask(server, "/api/look", {"text": "cat"}, headers={"Content-Type": "text/plain"})
    assert (status, answer["error"]) == (400, "Content-Type: must be application/json")


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/model/config.json", "/?x=1"])
def test_no_file_is_served(server: InspectorServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_taken_port(server: InspectorServer) -> None:
    inspector = Inspector(model(), tokenizer=tokenizer(), name="tiny")
    with pytest.raises(InputError, match=rf"--port {server.server_port}: cannot be used"):
        InspectorServer(inspector, page="", port=server.server_port)
