"""The pages in a headless Chromium: clicked through, by mouse and keyboard, without a network."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sortyard.jobs.inspecting import freeze
from sortyard.jobs.inspector_server import InspectorServer
from sortyard.reports.comparison.comparison import compare_runs
from sortyard.reports.comparison.page import write_comparison
from sortyard.reports.inspector.inspector import Inspector
from sortyard.reports.inspector.page import Question, live_page
from sortyard.reports.report import write_report
from tests.reports.conftest import add_evaluation, demo_folder, fill  # noqa: F401  (a fixture)
from tests.reports.inspector.tiny import LONG, SENTENCE, model, tokenizer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a busy machine computes for seconds
BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome nor chrome is on PATH"),
]


class Watched:
    """A page, what it complained of, and what it asked for beyond itself."""

    def __init__(self, page: "playwright.Page") -> None:
        self.page, self.errors, self.requests = page, [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> "playwright.Page":
        self.page.goto(url)
        return self.page

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def watched(browser: "playwright.Browser", request: pytest.FixtureRequest) -> Iterator[Watched]:
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(30_000)
    yield Watched(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(model(), tokenizer=tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def server(inspector: Inspector) -> Iterator[InspectorServer]:
    with InspectorServer(inspector, page=live_page(inspector)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(page: "playwright.Page", text: str, *, before: str = "", other: str = "") -> None:
    for name, value in (("text", text), ("before", before), ("other", other)):
        page.fill(f"#{name}", value)
    page.click("#look")
    expect(page.locator("#status")).to_have_text("")


def test_inspector_is_clicked_through(watched: Watched, server: InspectorServer, inspector: Inspector) -> None:
    page = watched.open(server.url)
    ask(page, LONG, before="the dog", other="a big big mat")
    assert page.locator("#tokens button").count() == 68
    assert "The last word, cat, hidden" in watched.text("#prediction")
    page.select_option("#layer", index=1)
    page.select_option("#head", index=1)
    expect(page.locator("#layer-line")).to_contain_text("sparsity")
    page.click("#tokens button[data-token='40']")
    expect(page.locator("#query-line")).to_contain_text("token 41 of 68")
    expect(page.locator("#status")).to_have_text("")
    row = inspector.row(LONG, layer=1, head=1, query=40, before="the dog")
    assert f"{row['num_exact']} keys exact" in watched.text("#query-line")
    assert f"{row['num_summarised']} behind {len(row['summaries'])} summar" in watched.text("#query-line")
    assert page.locator("#tokens button.exact").count() == row["num_exact"]
    assert page.locator("#tokens button.summarised").count() == row["num_summarised"]
    assert page.locator("#row-tables table").count() == 2
    assert page.locator("#map-plot .plot-container").count() == 1
    page.check("input[name=side][value='1']")
    expect(page.locator("#tokens button")).to_have_count(70)
    changed = inspector.look(LONG, before="the dog", other="a big big mat")["changed"][1]["changed"]
    assert page.locator("#expert-tokens .changed").count() == changed
    assert f"{changed} of the text's 64 tokens go to other experts" in watched.text("#experts-line")
    assert watched.errors == []


def test_keyboard_reaches_and_chooses_tokens(watched: Watched, server: InspectorServer) -> None:
    page = watched.open(server.url)
    ask(page, SENTENCE)
    page.focus("#tokens button.query")
    chosen = int(page.get_attribute("#tokens button.query", "data-token"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#tokens button.query")).to_have_attribute("data-token", str(chosen + 1))
    expect(page.locator("#tokens button.query")).to_be_focused()


def test_errors_stand_in_the_page(watched: Watched, server: InspectorServer) -> None:
    page = watched.open(server.url)
    ask(page, "cat " * 200)
    assert "text: has 202 tokens" in watched.text("#error")
    ask(page, "   .")
    expect(page.locator("#error")).to_be_hidden()
    assert page.is_visible("#answer")


def test_frozen_page_is_clicked_offline(watched: Watched, inspector: Inspector, tmp_path: Path) -> None:
    freeze(inspector, Question(LONG, before="the dog", other="a mat", layer=1), out=tmp_path / "page.html")
    watched.page.context.set_offline(True)
    page = watched.open((tmp_path / "page.html").as_uri())
    expect(page.locator("#tokens button")).to_have_count(68)
    page.select_option("#layer", index=0)
    page.click("#tokens button[data-token='9']")
    expect(page.locator("#query-line")).to_contain_text("token 10 of 68")
    page.check("input[name=side][value='1']")
    expect(page.locator("#status")).to_have_text("")
    assert watched.errors == []
    assert [url for url in watched.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_report_and_comparison_draw(watched: Watched, demo_folder: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    runs = []
    for name in ("one", "two"):
        run = fill(tmp_path / name, name=name, steps=300, start=1.4, end=0.6)
        add_evaluation(run)
        runs.append(run.path)
    paths = (write_report(demo_folder()), write_comparison(compare_runs(runs), out=tmp_path / "compare.html"))
    for path in paths:
        page = watched.open(path.as_uri())
        expect(page.locator(".plot .plot-container")).to_have_count(page.locator(".plot").count())
        page.emulate_media(media="print")
        page.wait_for_timeout(200)
        overflow = page.locator("html").evaluate("node => node.scrollWidth - node.clientWidth")
        assert overflow <= 1, "wider than the paper"
        page.emulate_media(media="screen")
    assert watched.errors == []
