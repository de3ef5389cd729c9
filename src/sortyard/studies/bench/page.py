"""A result's page: one HTML file that works offline, in the look of the runs' reports."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from sortyard.durable import replace_bytes
from sortyard.reports.headline import Fact
from sortyard.reports.report import Page
from sortyard.reports.sections import Section
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import length_text

Json = dict[str, Any]


def write_page(result: BenchResult, *, folder: Path, title: str, verdict: str, sections: Sequence[Section]) -> Path:
    """Write NAME.html: the verdict, the pictures with their numbers, and where it was measured.

    Args:
        result: The result.
        folder: An existing folder.
        title: The page's heading.
        verdict: What came out, in a sentence or two.
        sections: Pictures and tables.

    Returns:
        The file.
    """
    page = Page(
        eyebrow=f"Benchmark, {result.date}" + ("" if result.complete else ", not finished"),
        title=title,
        verdict=verdict,
        bars=(),
        bars_note="",
        facts=_facts(result),
        commands=(*result.earlier_commands, result.command),
        sections=tuple(sections),
        folder=folder.resolve().name,
    )
    path = folder / f"{result.name}.html"
    replace_bytes(path, render_page(page).encode())
    return path


def threads_text(result: BenchResult) -> str:
    """Write the number of threads: 1 thread, 2 threads."""
    return f"{result.threads} thread{'s' * (result.threads > 1)}"


def value_axis(traces: Sequence[Json]) -> Json:
    """A logarithmic axis for traces of positive values, labelled at powers of ten; at 1, 2 and 5 or every digit too
    where few of those are in sight.
    """
    values = [y for trace in traces for y in trace["y"]]
    span = max(values) / min(values) if values else 1.0
    labels: int | str = 1 if span >= 100 else ("D2" if span >= 5 else "D1")
    return {"type": "log", "exponentformat": "none", "tickformat": "~g", "dtick": labels}


def length_axis(lengths: Sequence[int]) -> Json:
    """A logarithmic axis of lengths, labelled at those that were measured."""
    return {"type": "log", "tickvals": list(lengths), "ticktext": [length_text(length) for length in lengths]}


def _facts(result: BenchResult) -> tuple[Fact, ...]:
    cores = f"{result.machine['cores']} cores, {threads_text(result)}; {result.machine['device']}{_load_text(result)}"
    packages = ("sortyard", "torch")
    peers = [f"{name} {known}" for name, known in result.versions.items() if name not in packages]
    code = f"code {result.code}" + (f", commit {result.commit[:12]}" if result.commit else "")
    return (
        Fact("Machine", str(result.machine["cpu"]), cores),
        Fact("Versions", ", ".join(f"{name} {result.versions[name]}" for name in packages), ", ".join(peers)),
        Fact("Code", f"seed {result.seed}", code),
    )


def _load_text(result: BenchResult) -> str:
    """How busy the machine was when the cells began; more than the threads is the work of others."""
    loads = [cell["machine_load"] for cell in result.cells.values() if cell.get("machine_load") is not None]
    return f"; load {min(loads):g} to {max(loads):g}" if loads else ""


def render_page(page: Page) -> str:
    """Return the page's HTML: one file that works offline."""
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("sortyard.reports")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"embedded": htmlsafe_json_dumps, "verbatim": Markup}
    return templates.get_template("report.html.j2").render(
        page=page,
        version=version("sortyard"),
        css=loader.get_source(templates, "report.css")[0],
        js=loader.get_source(templates, "report.js")[0],
        plotly_js=get_plotlyjs(),
    )
