"""Draws the pictures of docs/images that come of results: an element of a result's own page, as a browser shows it.

Run: python benchmarks/pictures.py (needs a Chromium and playwright, which the package's extra `dev` has)
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from playwright.sync_api import sync_playwright

from runs import ROOT
from sortyard.studies.bench.attention_page import attention_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.claims.claims_page import claims_page
from sortyard.studies.sparsity.sparsity_page import sparsity_page

RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BROWSERS = ("chromium", "google-chrome", "chrome")
WIDTH, HEIGHT = 1120, 900


PICTURES: dict[str, tuple[Callable[..., Path], str]] = {
    "attention": (attention_page, "#fp32-forward-and-backward-picture"),
    "claims": (partial(claims_page, figures={}), "#claims-reached"),
    "sparsity": (sparsity_page, "#sparsity-2048"),
}  # name of the result and of the image; its page; the picture there


def main() -> None:
    browser_path = next(path for name in BROWSERS if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name, (write, selector) in PICTURES.items():
            stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(write(BenchResult(**stored), folder=Path(folder)).as_uri())
            page.wait_for_selector(f"{selector} svg")
            page.locator(selector).screenshot(path=IMAGES / f"{name}.png", animations="disabled")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
