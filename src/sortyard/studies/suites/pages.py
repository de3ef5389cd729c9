"""A suite's result as a page and as text."""

from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.reports.headline import Fact
from sortyard.reports.report import Page
from sortyard.reports.sections import Section
from sortyard.reports.suite_sections import glue_section, glue_verdict, long_section
from sortyard.studies.bench.page import render_page
from sortyard.studies.bench.tables import text_table

Json = dict[str, Any]


def write_suite_page(found: Json, *, folder: Path) -> Path:
    """Write SUITE.html beside the runs.

    Args:
        found: The suite's result.
        folder: Of the runs.

    Returns:
        The file.
    """
    section = _section(found)
    page = Page(
        eyebrow=f"Suite {found['suite']}, {found.get('date', 'nothing measured')}",
        title=f"{section.title}: {found['model']}",
        verdict=glue_verdict(found) if found["suite"] == "glue" else section.intro,
        bars=(),
        bars_note="",
        facts=_facts(found),
        commands=(),
        sections=(section,),
        folder=folder.name,
    )
    path = folder / f"{found['suite']}.html"
    replace_bytes(path, render_page(page).encode())
    return path


def suite_text(found: Json) -> str:
    """Write every table as text, and where the files are."""
    section = _section(found)
    return "\n\n".join([section.intro, *map(text_table, section.tables), "\n".join(found["files"])])


def _section(found: Json) -> Section:
    return glue_section(found) if found["suite"] == "glue" else long_section(found)


def _facts(found: Json) -> tuple[Fact, ...]:
    if "machine" not in found:
        return ()
    machine, versions = found["machine"], found["versions"]
    return (
        Fact("Machine", str(machine["cpu"]), f"{machine['cores']} cores, one for each run; {machine['device']}"),
        Fact("Versions", f"sortyard {versions['sortyard']}", f"torch {versions['torch']}"),
    )
