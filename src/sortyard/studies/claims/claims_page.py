"""The ledger as a table, as a page and in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.reports.figures import Figure, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import text_table
from sortyard.studies.claims.findings import FAILS, HOLDS, IN_PART, MISSING

Json = dict[str, Any]
_COLOURS = {HOLDS: "good", IN_PART: "amber", FAILS: "bad", MISSING: "muted"}
_ROW_HEIGHT = 44


def claims_text(result: BenchResult) -> str:
    """Write the ledger as text: a line a claim, its spread, controls and notes beneath."""
    lines = []
    for id_, cell in result.cells.items():
        lines.append(f"{id_:4s}{cell['title']}: claimed {cell['claimed']}")
        lines.append(f"    {cell['verdict']}" + (f": {cell['measured']}" if cell["measured"] else ""))
        for name in ("spread", "note"):
            lines += [f"    {name}: {cell[name]}"] if cell[name] else []
        lines += [f"    beside it: {'; '.join(cell['controls'])}"] if cell["controls"] else []
        made = _origins_text(cell, result)
        lines += [f"    made with: {made}"] if made else []
        lines += [f"    problem: {problem}" for problem in cell["problems"]]
    return "\n".join([*lines, "", text_table(_verdict_table(result))])


def write_markdown(result: BenchResult, *, folder: Path) -> Path:
    """Write claims.md: the table that a README shows.

    Args:
        result: The ledger.
        folder: An existing folder.

    Returns:
        The file.
    """
    path = folder / "claims.md"
    replace_bytes(path, markdown(result).encode())
    return path


def markdown(result: BenchResult) -> str:
    """Return the ledger as a Markdown table."""
    machine = result.machine
    lines = [
        f"Measured on {result.date}, {machine['cores']} cores of {machine['cpu']}, {machine['device']}, by "
        f"`{result.command}`.",
        "",
        "| claim | said | measured | spread | beside it | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for id_, cell in result.cells.items():
        beside = "; ".join(cell["controls"])
        measured = cell["measured"] or cell["note"]
        row = (f"{id_} {cell['title']}", cell["claimed"], measured, cell["spread"], beside, f"**{cell['verdict']}**")
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")
    others: dict[str, list[str]] = {}
    for id_, cell in result.cells.items():
        if text := _origins_text(cell, result):
            others.setdefault(text, []).append(id_)
    notes = [f"{', '.join(ids)}: made with {text}." for text, ids in others.items()]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def claims_page(result: BenchResult, *, folder: Path, figures: Mapping[str, Sequence[Figure]]) -> Path:
    """Write claims.html: how far each claim is reached, then each by itself.

    Args:
        result: The ledger.
        folder: An existing folder.
        figures: Pictures by claim.

    Returns:
        The file.
    """
    counts = ", ".join(f"{verdict}: {count}" for verdict, count in result.summary["verdicts"].items())
    reached = Section(id="reached", title="Measured over claimed", figures=(_figure(result),))
    return write_page(
        result, folder=folder, title="What holds of what was claimed", verdict=f"Of twelve claims, {counts}.",
        sections=[reached, *(_section(result, id_, figures.get(id_, ())) for id_ in result.cells)],
    )  # fmt: skip


def _section(result: BenchResult, id_: str, figures: Sequence[Figure]) -> Section:
    """A claim by itself; its sentences stand above its pictures."""
    cell = result.cells[id_]
    lines = {
        "claimed": cell["claimed"],
        "measured": cell["measured"],
        "spread": cell["spread"],
        "beside it": "; ".join(cell["controls"]),
        "note": cell["note"],
        "how": cell["how"],
        "made with": _origins_text(cell, result),
        "problems": "; ".join(cell["problems"]),
        "commands": "; ".join(cell["commands"].values()),
        "processor time": f"{cell['processor_seconds'] / 60:.0f} min" if cell["processor_seconds"] else "",
    }
    rows = tuple((name, words) for name, words in lines.items() if words)
    table = Table(cell["verdict"].capitalize(), ("", f"{id_}, {cell['title']}"), rows, has_sentences=True)
    return Section(id=id_, title=f"{id_} {cell['title']}", tables=(table,), figures=tuple(figures))


def _origins_text(cell: Json, result: BenchResult) -> str:
    """Say with which machines and code a claim's commands were run; "" where those of the whole result say it all."""
    origins = cell.get("origins", [])  # not kept by earlier versions
    if all((one.get("machine"), one.get("code")) == (result.machine, result.code) for one in origins):
        return ""
    return "; ".join(_origin_text(one) for one in origins)


def _origin_text(origin: Json) -> str:
    if not origin:
        return "a machine and code that were not kept"
    machine = origin["machine"]
    commit = f", commit {origin['commit'][:12]}" if origin["commit"] else ""
    return f"{machine['cores']} cores of {machine['cpu']}, {machine['device']}, code {origin['code']}{commit}"


def _figure(result: BenchResult) -> Figure:
    """A bar a claim: measured as a share of claimed, with its interval."""
    cells = {id_: cell for id_, cell in result.cells.items() if cell["share"] is not None}
    names = [f"{id_} {cell['title']}" for id_, cell in cells.items()]
    shares = [cell["share"] for cell in cells.values()]
    bar = {
        "type": "bar", "orientation": "h", "y": names, "x": shares,
        "marker": {"color": [f"theme:{_COLOURS[cell['verdict']]}" for cell in cells.values()]},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 1.5, "width": 5, "color": "theme:ink",
            "array": [_half(cell["share_high"], cell["share"]) for cell in cells.values()],
            "arrayminus": [_half(cell["share"], cell["share_low"]) for cell in cells.values()],
        },
        "text": [cell["verdict"] for cell in cells.values()], "textposition": "none",
        "hovertemplate": "%{y}: %{x:.2f} of what was claimed, %{text}<extra></extra>",
    }  # fmt: skip
    line = {"type": "line", "x0": 1, "x1": 1, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    layout = {
        "margin": {"l": 280, "r": 24, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "measured / claimed"}, "zeroline": True},
        "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
        "shapes": [line | {"line": {"color": "theme:ink", "dash": "dot", "width": 1.5}}],
        "showlegend": False,
    }
    rows = tuple(
        (name, *(_share(cell[end]) for end in ("share", "share_low", "share_high")), cell["verdict"])
        for name, cell in zip(names, cells.values(), strict=True)
    )
    return Figure(
        id="claims-reached", title="Measured over claimed", height=_ROW_HEIGHT * max(3, len(cells)) + 80, data=(bar,),
        layout=layout,
        caption="1, the dotted line, is what the article says; lines show intervals over seeds, or the range over "
        "cases. Claims without such a number are in the table only.",
        description="Measured over claimed, a bar a claim.",
        tables=(Table("Measured over claimed", ("claim", "share", "low", "high", "verdict"), rows),),
    )  # fmt: skip


def _half(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict_table(result: BenchResult) -> Table:
    rows = tuple((verdict, str(count)) for verdict, count in result.summary["verdicts"].items())
    return Table("Verdicts", ("verdict", "claims"), rows)
