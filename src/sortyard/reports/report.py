"""A run folder in, one offline page out."""

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sortyard.durable import replace_bytes
from sortyard.reports.headline import Fact, facts, headline
from sortyard.reports.run_data import RunData, read_run
from sortyard.reports.sections import (
    Section,
    attention_section,
    environment_section,
    evaluation_section,
    experts_section,
    training_section,
)
from sortyard.reports.suite_sections import suite_sections
from sortyard.reports.wording import Bar


@dataclass(frozen=True)
class Page:
    """What the template shows."""

    eyebrow: str
    title: str
    verdict: str
    bars: tuple[Bar, ...]
    bars_note: str
    facts: tuple[Fact, ...]
    commands: tuple[str, ...]
    sections: tuple[Section, ...]
    folder: str

    @property
    def has_figures(self) -> bool:
        """Whether the page needs the plotting library at all."""
        return any(section.figures for section in self.sections)


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder.

    The page is one file that works offline: the plotting library is inlined once, a content-security policy forbids
    every network access, and each picture has its numbers in a table beneath it. Whatever the run did not record is
    simply absent.

    Args:
        run: a run's folder, or a folder with the runs `pretrain` and `finetune` and, where there is one,
            `comparison.json`.

    Returns:
        The report's path.

    Raises:
        InputError: the folder holds no run, or one of its files is damaged.
    """
    data = read_run(Path(run))
    path = data.path / "report.html"
    replace_bytes(path, render(data).encode())
    return path


def render(data: RunData) -> str:
    """Return the page's HTML."""
    return render_page(_page(data))


def render_page(page: Page) -> str:
    """Return the HTML of any page of this look."""
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=PackageLoader("sortyard.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"embedded": _embedded, "verbatim": _verbatim}
    source = templates.loader.get_source if templates.loader else None
    assert source is not None
    return templates.get_template("report.html.j2").render(
        page=page,
        version=version("sortyard"),
        css=source(templates, "report.css")[0],
        js=source(templates, "report.js")[0],
        plotly_js=get_plotlyjs(),
    )


def _page(data: RunData) -> Page:
    top = headline(data)
    return Page(
        eyebrow=top.eyebrow,
        title=top.title,
        verdict=top.verdict,
        bars=top.bars,
        bars_note=top.bars_note,
        facts=facts(data),
        commands=tuple(dict.fromkeys(c for phase in data.phases if (c := phase.environment.get("command")))),
        sections=tuple(_sections(data)),
        folder=data.path.resolve().name,
    )


def _sections(data: RunData) -> list[Section]:
    final = data.final
    found: list[Section | None] = [
        evaluation_section(evaluation, settings=final.settings, id=f"result-{_slug(evaluation.name)}")
        for evaluation in final.evaluations
    ]
    found += suite_sections(final.evaluations)
    for phase in data.phases:
        name = "Adapting" if phase.is_adapting else "Fine-tuning" if phase.is_finetuning else "Pretraining"
        found.append(training_section(phase, id=f"{_slug(name)}-training", title=name))
    for phase in data.phases:
        suffix = (
            "" if len(data.phases) == 1 else (" while fine-tuning" if phase.is_finetuning else " while pretraining")
        )
        slug = "adapting" if phase.is_adapting else "finetuning" if phase.is_finetuning else "pretraining"
        found.append(experts_section(phase, id=f"{slug}-experts", title=f"Experts{suffix}"))
        found.append(
            attention_section(phase, id=f"{slug}-attention", title=f"Buckets{suffix.replace('while', 'after')}")
        )
    return [section for section in [*found, environment_section(data.phases)] if section is not None]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


def _embedded(value: Any) -> Markup:
    """Write JSON that a script element can hold: no `<` that could close it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _verbatim(text: str) -> Markup:
    """Mark our own style sheet and scripts as safe; they may not close their element."""
    assert "</script" not in text and "</style" not in text  # noqa: PT018 - one condition about one text
    return Markup(text)
