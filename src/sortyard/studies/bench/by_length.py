"""Tables and pictures of sides by length: a row or a line for each side, a column or a tick for each length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table, plain
from sortyard.studies.bench.page import length_axis, value_axis
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, length_text

Json = dict[str, Any]
LineCells = Mapping[int, Json]
_PANEL_HEIGHT = 300
LEGEND = {"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top", "groupclick": "togglegroup"}


@dataclass(frozen=True)
class Look:
    """How a side's line is drawn: the theme's name of a colour, and plotly's of a dash."""

    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Panel:
    """One quantity of a picture.

    Attributes:
        title: What it is, with its unit.
        value: Reads it from a side's record; None where there is none.
        spread: The record's field that holds median, low and high, where bars are drawn.
    """

    title: str
    value: Callable[[Json], float | None]
    spread: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a panel.

    Attributes:
        name: Its name in the legend.
        look: How it is drawn.
        records: What it is drawn from, by length.
    """

    name: str
    look: Look
    records: Mapping[int, Json]


def lines_of(result: BenchResult) -> list[str]:
    """Name the lines of a result, that is the cells' keys without the length, in the order of measurement."""
    return list(dict.fromkeys(key.rpartition("/")[0] for key in result.cells))


def line_cells(result: BenchResult, line: str) -> LineCells:
    """Return the sides' records of a line's cells, by length."""
    found = [cell for key, cell in result.cells.items() if key.rpartition("/")[0] == line]
    return {cell["length"]: cell["sides"] for cell in sorted(found, key=lambda cell: int(cell["length"]))}


def line_title(line: str) -> str:
    """Write a line's name for people: fp32, forward and backward."""
    return line.replace("/", ", ").replace("+", " and ")


def line_slug(line: str) -> str:
    """Write a line's name as an id of the page."""
    return line.replace("/", "-").replace("+", "-and-")


def line_series(cells: LineCells, look: Callable[[str], Look]) -> list[Series]:
    """Return every side of a line as a series."""
    names = dict.fromkeys(name for sides in cells.values() for name in sides)
    return [Series(name, look(name), {n: sides[name] for n, sides in cells.items() if name in sides}) for name in names]


def side_table(
    caption: str,
    cells: LineCells,
    *,
    value: Callable[[Json], str],
    last: tuple[str, Callable[[str], str]] | None = None,
) -> Table:
    """Set a value of every side out by length.

    Args:
        caption: What the numbers are.
        cells: A line's records.
        value: Writes it from a record.
        last: Heading of a last column, and what it says of a side; none if left out.

    Returns:
        The table.
    """
    names = dict.fromkeys(name for sides in cells.values() for name in sides)
    rows = tuple(
        (
            name,
            *(value(sides[name]) if name in sides else MISSING for sides in cells.values()),
            *(() if last is None else (last[1](name),)),
        )
        for name in names
    )
    return Table(caption, ("side", *map(length_text, cells), *(() if last is None else (last[0],))), rows)


def has_memory(cells: LineCells) -> bool:
    """Say whether any side's memory was measured."""
    return any(record["peak_extra_bytes"] is not None for sides in cells.values() for record in sides.values())


def memory_panels(cells: LineCells) -> list[Panel]:
    """Return a panel of memory where it was measured at more than one length: a row of dots shows nothing."""
    lengths = [n for n, sides in cells.items() if has_memory({n: sides})]
    return [Panel("Peak extra memory, MB", peak_megabytes)] if len(lengths) > 1 else []


def peak_megabytes(record: Json) -> float | None:
    """Read a record's peak extra memory in MB."""
    num_bytes: int | None = record["peak_extra_bytes"]
    return num_bytes / 1e6 if num_bytes else None


def skips_text(result: BenchResult) -> list[str]:
    """Say why figures are missing: one line for each side and reason, with the cells it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, cell in result.cells.items():
        for name, record in cell["sides"].items():
            if record["skipped"]:
                reasons.setdefault((name, record["skipped"]), []).append(key)
    lines = [f"{name}: {reason} ({', '.join(keys)})" for (name, reason), keys in reasons.items()]
    return ["not measured:\n" + "\n".join(lines)] if lines else []


def length_figure(
    panels: Sequence[tuple[Panel, Sequence[Series]]],
    *,
    id: str,  # noqa: A002
    title: str,
    caption: str,
    description: str,
    tables: tuple[Table, ...],
) -> Figure:
    """Draw panels beneath each other over one logarithmic axis of lengths.

    Args:
        panels: Each panel and its series; the legend takes its names from the first.
        id: The picture's id in the page.
        title: Its name.
        caption: What one sees.
        description: The same for who cannot see it.
        tables: Its numbers.

    Returns:
        The picture.
    """
    stack = Stack()
    for number, (panel, series) in enumerate(panels):
        traces = [trace for one in series for trace in _traces(one, panel, named=number == 0)]
        stack.add(panel.title, height=_PANEL_HEIGHT, traces=traces, axis=value_axis(traces))
    height = stack.finish(x_title="tokens")
    lengths = sorted({n for _, series in panels for one in series for n in one.records})
    stack.layout["xaxis"] |= length_axis(lengths)
    stack.layout |= {"showlegend": True, "legend": LEGEND}
    return Figure(
        id=id, title=title, caption=caption, description=description, height=height, data=tuple(stack.traces),
        layout=stack.layout, tables=tables,
    )  # fmt: skip


def _traces(series: Series, panel: Panel, *, named: bool) -> list[Json]:
    """One line, or none where nothing was measured."""
    points = [(n, record) for n, record in series.records.items() if panel.value(record) is not None]
    if not points:
        return []
    name = plain(series.name)
    trace: Json = {
        "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": series.name, "showlegend": named,
        "x": [n for n, _ in points], "y": [panel.value(record) for _, record in points],
        "line": {"color": f"theme:{series.look.colour}", "width": 2, "dash": series.look.dash},
        "marker": {"size": 5}, "hovertemplate": f"{name}: %{{y:.3~g}} at %{{x:,}} tokens<extra></extra>",
    }  # fmt: skip
    if panel.spread:
        ranges = [record[panel.spread] for _, record in points]
        bars = {
            "array": [found["high"] - found["median"] for found in ranges],
            "arrayminus": [found["median"] - found["low"] for found in ranges],
        }
        trace["error_y"] = {"type": "data", "symmetric": False, "thickness": 1, "width": 2, **bars}
    return [trace]
