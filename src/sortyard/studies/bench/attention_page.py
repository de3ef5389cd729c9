"""The tables and the page of `bench attention`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table, plain
from sortyard.reports.sections import Section
from sortyard.studies.bench.fits import Crossover
from sortyard.studies.bench.page import length_axis, threads_text, value_axis, write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import (
    MISSING,
    length_text,
    megabytes_text,
    number_text,
    seconds_text,
    text_table,
    times_text,
)

Json = dict[str, Any]
Cells = Mapping[int, Json]
_HEADINGS = {"fp32": "fp32", "bf16": "bf16", "forward": "forward", "forward+backward": "forward and backward"}
_COLOURS = {
    "dense": "ink", "materialised": "muted", "flash": "low", "flex": "violet", "rounds": "amber",
    "transformers": "ochre", "reformer-pytorch": "bad",
}  # fmt: skip
_BACKEND_COLOURS = {"cpu": "accent", "compiled": "green", "triton": "violet"}
_DASHES = {"small": "dot", "default": "solid", "large": "dash", "1r": "dot", "2r": "solid"}


def attention_text(result: BenchResult) -> str:
    """Write every table of a result, and why cells are missing, as text."""
    blocks = [text_table(table) for line in _lines(result) for table in _tables(result, line)]
    return "\n\n".join([*blocks, *_skips(result)])


def attention_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: for each dtype and direction a picture of time, ratio and memory, and its numbers."""
    sections = [_section(result, line) for line in _lines(result)]
    notes = result.summary["sides"]
    table = Table("What was compared", ("side", "what it is"), tuple(notes.items()))
    about = Section(
        id="sides",
        title="The sides",
        intro="Inputs are random and the same for all; the sides with shared queries and keys take the queries for "
        "both. Memory is the peak of one call in a process of its own, on top of its inputs.",
        tables=(table,),
    )
    return write_page(
        result,
        folder=folder,
        title="Bucket attention, time and memory by length",
        verdict=_verdict(result),
        sections=[*sections, about],
    )


def _lines(result: BenchResult) -> list[str]:
    return list(result.summary.get("lines", {}))


def _cells(result: BenchResult, line: str) -> Cells:
    found = [cell for cell in result.cells.values() if f"{cell['dtype']}/{cell['direction']}" == line]
    return {cell["length"]: cell["sides"] for cell in sorted(found, key=lambda cell: int(cell["length"]))}


def _title(line: str) -> str:
    dtype, _, direction = line.partition("/")
    return f"{_HEADINGS[dtype]}, {_HEADINGS[direction]}"


def _tables(result: BenchResult, line: str) -> tuple[Table, ...]:
    cells, fits = _cells(result, line), result.summary["lines"][line]

    def slope(kind: str) -> Callable[[str], str]:
        return lambda name: number_text((fits[name][kind] or {}).get("exponent"))

    tables = [
        _table(f"{_title(line)}: time of a call (median)", cells, last=(_slope_head(fits, "time_slope"),
               slope("time_slope")), value=lambda r: seconds_text(r["median_seconds"])),
        _table(f"{_title(line)}: times faster than dense (median)", cells, last=("faster from",
               lambda name: _crossover_text(fits[name])), value=lambda r: times_text(_ratio(r))),
    ]  # fmt: skip
    if any(record["peak_extra_bytes"] is not None for sides in cells.values() for record in sides.values()):
        tables.append(
            _table(f"{_title(line)}: peak extra memory in MB", cells, last=(_slope_head(fits, "memory_slope"),
                   slope("memory_slope")), value=lambda r: megabytes_text(r["peak_extra_bytes"]))
        )  # fmt: skip
    return tuple(tables)


def _table(
    caption: str, cells: Cells, *, value: Callable[[Json], str], last: tuple[str, Callable[[str], str]]
) -> Table:
    names = dict.fromkeys(name for sides in cells.values() for name in sides)
    rows = [
        (name, *(value(sides[name]) if name in sides else MISSING for sides in cells.values()), last[1](name))
        for name in names
    ]
    return Table(caption, ("side", *map(length_text, cells), last[0]), tuple(rows))


def _slope_head(fits: Mapping[str, Json], kind: str) -> str:
    """Say over which lengths the slopes are, the widest range that any side has."""
    ranges = [(fit[kind]["first"], fit[kind]["last"]) for fit in fits.values() if fit[kind]]
    if not ranges:
        return "slope"
    first, last = min(low for low, _ in ranges), max(high for _, high in ranges)
    return f"slope {length_text(first)}..{length_text(last)}"


def _ratio(record: Json) -> float | None:
    return None if record["ratio_to_dense"] is None else record["ratio_to_dense"]["median"]


def _crossover_text(fit: Json) -> str:
    found = fit["crossover_with_dense"]
    return MISSING if found is None else Crossover(**found).text()


def _skips(result: BenchResult) -> list[str]:
    """One line for each side and reason, with the cells it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, cell in result.cells.items():
        for name, record in cell["sides"].items():
            if record["skipped"]:
                reasons.setdefault((name, record["skipped"]), []).append(key)
    lines = [f"{name}: {reason} ({', '.join(keys)})" for (name, reason), keys in reasons.items()]
    return ["not measured:\n" + "\n".join(lines)] if lines else []


def _verdict(result: BenchResult) -> str:
    """The longest length at which dense attention was timed, and the default tree there, line by line."""
    sentences = []
    for line in _lines(result):
        found = [
            (length, ratio, name)
            for length, sides in _cells(result, line).items()
            for name, record in sides.items()
            if name.startswith("tree-default") and (ratio := _ratio(record)) is not None
        ]
        if found:
            length, ratio, name = max(found)
            sentences.append(f"{ratio:.3g} times as long as {name} at {length_text(length)} tokens ({_title(line)})")
    if not sentences:
        return "Dense attention and the default tree were not timed at one length."
    return f"In the same run dense attention takes {', '.join(sentences)}."


def _section(result: BenchResult, line: str) -> Section:
    slug = line.replace("/", "-").replace("+", "-and-")
    return Section(id=slug, title=_title(line), figures=(_figure(result, line, slug),))


def _figure(result: BenchResult, line: str, slug: str) -> Figure:
    cells, stack = _cells(result, line), Stack()
    panels = [("Seconds of a call", lambda r: r["median_seconds"]), ("Times faster than dense", _ratio)]
    tables = _tables(result, line)
    if len(tables) > len(panels):
        panels.append(("Peak extra memory, MB", lambda r: r["peak_extra_bytes"] and r["peak_extra_bytes"] / 1e6))
    for number, (title, value) in enumerate(panels):
        traces = _traces(cells, value, named=number == 0)
        stack.add(title, height=300, traces=traces, axis=value_axis(traces))
    height = stack.finish(x_title="tokens")
    stack.layout["xaxis"] |= length_axis(list(cells))
    legend = {"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top", "groupclick": "togglegroup"}
    stack.layout |= {"showlegend": True, "legend": legend}
    return Figure(
        id=f"{slug}-picture",
        title=_title(line),
        caption=_caption(result, line),
        description=f"Time, speed relative to dense attention and memory by length, {_title(line)}.",
        height=height,
        data=tuple(stack.traces),
        layout=stack.layout,
        tables=tables,
    )


def _caption(result: BenchResult, line: str) -> str:
    heads, width = result.settings["heads"], result.settings["head_width"]
    return (
        f"{_title(line)}; one sequence, {heads} heads of {width}, {threads_text(result)}, medians; the ratio's bars "
        "are the range over the rounds, in each of which every side ran once. All axes are logarithmic."
    )


def _traces(cells: Cells, value: Callable[[Json], float | None], *, named: bool) -> list[Json]:
    names = dict.fromkeys(name for sides in cells.values() for name in sides)
    found = []
    for name in names:
        points = [(n, sides[name]) for n, sides in cells.items() if name in sides and value(sides[name]) is not None]
        if points:
            found.append(_trace(name, points, value, named=named))
    return found


def _trace(name: str, points: list[tuple[int, Json]], value: Callable[[Json], float | None], *, named: bool) -> Json:
    words = name.split("-")
    colour = _BACKEND_COLOURS.get(words[-1], "accent") if words[0] == "tree" else _COLOURS.get(
        name.removesuffix("-1r").removesuffix("-2r").removesuffix("-cpu"), "muted")  # fmt: skip
    dash = next((_DASHES[word] for word in words if word in _DASHES), "solid")
    trace: Json = {
        "type": "scatter", "mode": "lines+markers", "name": plain(name), "legendgroup": name, "showlegend": named,
        "x": [n for n, _ in points], "y": [value(record) for _, record in points],
        "line": {"color": f"theme:{colour}", "width": 2, "dash": dash}, "marker": {"size": 5},
        "hovertemplate": f"{plain(name)}: %{{y:.3~g}} at %{{x:,}} tokens<extra></extra>",
    }  # fmt: skip
    if value is _ratio:
        ratios = [record["ratio_to_dense"] for _, record in points]
        spread = {
            "array": [r["high"] - r["median"] for r in ratios],
            "arrayminus": [r["median"] - r["low"] for r in ratios],
        }
        trace["error_y"] = {"type": "data", "symmetric": False, "thickness": 1, "width": 2, **spread}
    return trace
