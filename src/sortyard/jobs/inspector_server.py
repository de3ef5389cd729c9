"""The inspector's server: one page and three questions, on this machine alone; it reads no file."""

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError, first_line

if TYPE_CHECKING:
    from sortyard.reports.inspector.inspector import Inspector

Json = dict[str, Any]
ADDRESS = "127.0.0.1"
MAX_BODY_BYTES = 1_000_000
SECONDS_TO_SEND = 30
TEXTS, NUMBERS = ("text", "before"), ("layer", "head", "query")
FIELDS = {
    "/api/look": ("text", "before", "other"),
    "/api/map": ("text", "before", "layer", "head"),
    "/api/row": ("text", "before", "layer", "head", "query"),
}


class InspectorServer(ThreadingHTTPServer):
    """Serves a page and answers about texts, one after another.

    Args:
        inspector: Answers.
        page: The page.
        port: A port; 0 takes a free one.

    Raises:
        InputError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, inspector: "Inspector", *, page: str, port: int = 0) -> None:
        self.page = page.encode()
        self.answers: dict[str, Callable[..., Json]] = {
            "/api/look": inspector.look,
            "/api/map": inspector.map,
            "/api/row": inspector.row,
        }
        self.model_lock = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(
                f"--port {port}: cannot be used ({error.strerror}); leave it out to take a free one"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: InspectorServer
    server_version, sys_version = "sortyard", ""
    timeout = SECONDS_TO_SEND

    def do_GET(self) -> None:
        if self._is_foreign():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, self.server.page, kind="text/html")
        else:
            self._fail(HTTPStatus.NOT_FOUND, "there is nothing here but the page /")

    def do_POST(self) -> None:
        if self._is_foreign():
            return
        try:
            answer = self._answer()
        except InputError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # the page shall say what happened, and the server go on
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {first_line(error)}")
        else:
            self._send(HTTPStatus.OK, json.dumps(answer, ensure_ascii=False).encode(), kind="application/json")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: texts are nobody's business."""

    def _is_foreign(self) -> bool:
        """Refuse what another site's page sends: its name in Host (a rebound name) or Origin gives it away."""
        port = self.server.server_port
        own = {f"{host}:{port}" for host in (ADDRESS, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin in {f"http://{host}" for host in own}):
            return False
        self._fail(HTTPStatus.FORBIDDEN, "this server answers its own page on this machine only")
        return True

    def _answer(self) -> Json:
        if self.path not in FIELDS:
            raise InputError(f"{self.path[:80]}: there is no such question; known are {', '.join(FIELDS)}")
        if self.headers.get_content_type() != "application/json":
            raise InputError("Content-Type: must be application/json")
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdecimal()):
            raise InputError("Content-Length: must be given")
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise InputError(f"text: is too long, {int(length):,} bytes; at most {MAX_BODY_BYTES:,} are read")
        question = checked_question(self.path, self.rfile.read(int(length)))
        with self.server.model_lock:
            return self.server.answers[self.path](question.pop("text"), **question)

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True
        self._send(status, json.dumps({"error": message}).encode(), kind="application/json")

    def _send(self, status: HTTPStatus, content: bytes, *, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)


def checked_question(path: str, body: bytes) -> Json:
    """Reads a question, and refuses what is none.

    Args:
        path: A key of `FIELDS`.
        body: JSON.

    Raises:
        InputError: It is no JSON object of the right fields.
    """
    try:
        question = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the question is no JSON") from error
    known = FIELDS[path]
    if not isinstance(question, dict) or not set(question) <= set(known) or "text" not in question:
        raise InputError(f"the question must be a JSON object with {', '.join(known)}")
    for name in known:
        value = question.get(name)
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{name}: must be a whole number, counted from 0")
        if name in TEXTS and not isinstance(question.setdefault(name, ""), str):
            raise InputError(f"{name}: must be a text")
        if name == "other" and not (value is None or isinstance(value, str)):
            raise InputError("other: must be a text, or null")
    return question
