"""The page: complete, escaped, offline, well-formed, and without what a run did not record."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.reports.report import write_report
from tests.reports.conftest import NASTY, synthetic_inspection

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Checks nesting and remembers ids, headings, references and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.data: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[name] for name in ("aria-labelledby", "data-plot") if name in values]
        self.references += [values["href"][1:]] if values.get("href", "").startswith("#") else []
        self.loads += [values[name] for name in ("src", "href", "action", "data") if name in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.data).append(data)


def outline(path: Path) -> Outline:
    page = Outline()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def text_of(path: Path) -> str:
    return " ".join(" ".join(outline(path).data).split())


@pytest.fixture
def demo_page(demo_folder: Callable[..., Path]) -> Path:
    return write_report(demo_folder())


def test_demo_page_is_well_formed_small_and_offline(demo_page: Path) -> None:
    page = outline(demo_page)
    assert demo_page.stat().st_size < 6_000_000
    assert all(load.startswith("#") for load in page.loads)
    html = demo_page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "@import" not in html.split("</style>")[0]
    assert html.count("plotly.js v") == 1
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1


def test_demo_page_shows_every_part(demo_page: Path) -> None:
    text = text_of(demo_page)
    for part in (
        "The model beats the bag-of-words baseline: 71.2 against 68.0 %.",
        "65.3 to 76.4 (n = 250), holds both, so the difference may be chance",
        "Pretraining", "Fine-tuning", "Experts while pretraining", "Buckets after fine-tuning",
        "Results on modules.tsv",
        "Wrong, and surest of it (72 wrong in all)", "sortyard demo --out runs/demo", "2.46M", "4 min 12 s",
        "A processor, 2 cores", "resumed (step 450)", "9 checkpoints", "Environment and recipe",
        "majority class 25.2 %",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(("accuracy", "words"), [(0.6, "does NOT beat"), (0.68, "it equals it"), (0.9, "beats")])
def test_verdict_is_honest(demo_folder: Callable[..., Path], accuracy: float, words: str) -> None:
    assert words in text_of(write_report(demo_folder(accuracy=accuracy)))


def test_texts_are_escaped_everywhere(finetune_run: Path) -> None:
    page = outline(write_report(finetune_run))
    assert "<script>alert" not in "".join(page.scripts)
    assert NASTY.split(" {{")[0] in " ".join(page.data)
    assert "49" not in re.findall(r"</style> (\S+)", " ".join(page.data))


def test_figures_are_valid_plotly(finetune_run: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    html = write_report(finetune_run).read_text(encoding="utf-8")
    specs = re.findall(r'data-plot="[^"]+">(.*?)</script>', html)
    assert len(specs) == 4
    for spec in specs:
        names = set(re.findall(r"theme:([a-z-]+)", spec))
        assert names <= set(re.findall(r"--([a-z-]+):", html))
        figure = json.loads(re.sub(r"theme:[a-z-]+", "#123456", spec))
        graph_objects.Figure(data=figure["data"], layout=figure["layout"])


def test_pretraining_run_alone(pretrain_run: Path) -> None:
    text = text_of(write_report(pretrain_run))
    assert "Pretraining run" in text
    assert "The held-out loss went from" in text
    assert "Results on" not in text
    assert "Buckets" not in text


def test_empty_run_has_no_sections_and_no_script(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("")
    page = write_report(tmp_path)
    assert page.stat().st_size < 20_000
    assert outline(page).headings == ["h1"]


def test_regression_run(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    result = {
        "task": "stsb", "type": "regression", "num_examples": 3, "metrics": {"spearman": 0.61, "pearson": 0.6},
        "main_metric": "spearman", "interval": None, "label_names": [], "confusion": None, "baselines": [],
    }  # fmt: skip
    (folder / "stsb.json").write_text(json.dumps(result))
    rows = [{"index": i, "text": "a", "text_pair": "b", "label": 1.0, "prediction": 1.0 + i} for i in range(3)]
    (folder / "stsb-predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = text_of(write_report(tmp_path))
    assert "Spearman correlation 0.610 on 3 examples" in text
    assert "Largest errors" in text


def test_long_runs_stay_small(pretrain_run: Path) -> None:
    line = json.dumps({"kind": "train", "step": 0, "loss": 1.23456789, "lr": 1e-4, "tokens_per_second": 1.0})
    with (pretrain_run / "metrics.jsonl").open("a") as file:
        file.writelines(line.replace('"step": 0', f'"step": {1000 + i}') + "\n" for i in range(20_000))
    assert write_report(pretrain_run).stat().st_size < 6_000_000


def test_picture_of_the_longest_inspection_stays_small(finetune_run: Path) -> None:
    (finetune_run / "inspection.json").write_text(json.dumps(synthetic_inspection(length=128)))
    assert write_report(finetune_run).stat().st_size < 6_000_000


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "absent", "no such folder"),
        (lambda folder: folder, "is no run's folder"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, prepare: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_report(prepare(tmp_path))


def test_damaged_file_is_named(pretrain_run: Path) -> None:
    (pretrain_run / "inspection.json").write_text("{")
    with pytest.raises(InputError, match=r"inspection\.json: is not JSON"):
        write_report(pretrain_run)


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_have_contrast(theme: int) -> None:
    css = (Path(__file__).parents[2] / "src/sortyard/reports/templates/report.css").read_text()
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]))
    for background in ("paper", "surface"):
        for name in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(colors[name], colors[background]) >= 4.5, (name, background)
        for name in ("amber", "ochre", "green", "violet", "low"):
            assert contrast(colors[name], colors[background]) >= 3, (name, background)
    assert contrast(colors["ink"], colors["accent-fill"]) >= 4.5 or theme == 1
