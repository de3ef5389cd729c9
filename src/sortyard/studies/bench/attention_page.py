"""The tables and the page of `bench attention`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.by_length import (
    Look,
    Panel,
    has_memory,
    length_figure,
    line_cells,
    line_series,
    line_slug,
    line_title,
    lines_of,
    memory_panels,
    side_table,
    skips_text,
)
from sortyard.studies.bench.fits import Crossover
from sortyard.studies.bench.page import threads_text, write_page
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
_COLOURS = {
    "dense": "ink", "materialised": "muted", "flash": "low", "flex": "violet", "rounds": "amber",
    "transformers": "ochre", "reformer-pytorch": "bad",
}  # fmt: skip
_BACKEND_COLOURS = {"cpu": "accent", "compiled": "green", "triton": "violet"}
_DASHES = {"small": "dot", "default": "solid", "large": "dash", "1r": "dot", "2r": "solid"}


def attention_text(result: BenchResult) -> str:
    """Write every table of a result, and why cells are missing, as text."""
    blocks = [text_table(table) for line in lines_of(result) for table in _tables(result, line)]
    return "\n\n".join([*blocks, *skips_text(result)])


def attention_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: for each dtype and direction a picture of time, ratio and memory, and its numbers."""
    sections = [_section(result, line) for line in lines_of(result)]
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


def attention_figures(result: BenchResult) -> tuple[Figure, ...]:
    """The picture of every dtype and direction."""
    return tuple(_figure(result, line) for line in lines_of(result))


def _tables(result: BenchResult, line: str) -> tuple[Table, ...]:
    cells, fits = line_cells(result, line), result.summary["lines"][line]

    tables = [
        side_table(f"{line_title(line)}: time of a call (median)", cells, last=_slopes(fits, "time_slope"),
                   value=lambda r: seconds_text(r["median_seconds"])),
        side_table(f"{line_title(line)}: times faster than dense (median)", cells, last=("faster from",
                   lambda name: _crossover_text(fits[name])), value=lambda r: times_text(_ratio(r))),
    ]  # fmt: skip
    if has_memory(cells):
        tables.append(
            side_table(f"{line_title(line)}: peak extra memory in MB", cells, last=_slopes(fits, "memory_slope"),
                       value=lambda r: megabytes_text(r["peak_extra_bytes"]))
        )  # fmt: skip
    return tuple(tables)


def _slopes(fits: Mapping[str, Json], kind: str) -> tuple[str, Callable[[str], str]]:
    """Head a column of slopes with the widest range that a side has; a side of another range names its own."""
    ranges = {name: (fit[kind]["first"], fit[kind]["last"]) for name, fit in fits.items() if fit[kind]}
    if not ranges:
        return "slope", lambda _: MISSING
    widest = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())

    def write(name: str) -> str:
        if name not in ranges:
            return MISSING
        own = "" if ranges[name] == widest else f" ({_range_text(ranges[name])})"
        return number_text(fits[name][kind]["exponent"]) + own

    return f"slope {_range_text(widest)}", write


def _range_text(lengths: tuple[int, int]) -> str:
    return "..".join(map(length_text, lengths))


def _ratio(record: Json) -> float | None:
    return None if record["ratio_to_dense"] is None else record["ratio_to_dense"]["median"]


def _crossover_text(fit: Json) -> str:
    found = fit["crossover_with_dense"]
    return MISSING if found is None else Crossover(**found).text()


def _verdict(result: BenchResult) -> str:
    """The longest length at which dense attention was timed, and the default tree there, line by line."""
    sentences = []
    for line in lines_of(result):
        found = [
            (length, ratio, name)
            for length, sides in line_cells(result, line).items()
            for name, record in sides.items()
            if name.startswith("tree-default") and (ratio := _ratio(record)) is not None
        ]
        if found:
            length, ratio, name = max(found)
            sentences.append(
                f"{ratio:.3g} times as long as {name} at {length_text(length)} tokens ({line_title(line)})"
            )
    if not sentences:
        return "Dense attention and the default tree were not timed at one length."
    return f"In the same run dense attention takes {', '.join(sentences)}."


def _section(result: BenchResult, line: str) -> Section:
    return Section(id=line_slug(line), title=line_title(line), figures=(_figure(result, line),))


def _figure(result: BenchResult, line: str) -> Figure:
    cells = line_cells(result, line)
    panels = [
        Panel("Seconds of a call", lambda r: r["median_seconds"]),
        Panel("Times faster than dense", _ratio, spread="ratio_to_dense"),
    ]
    panels += memory_panels(cells)
    series = line_series(cells, _look)
    return length_figure(
        [(panel, series) for panel in panels],
        id=f"{line_slug(line)}-picture",
        title=line_title(line),
        caption=_caption(result, line),
        description=f"Time, speed relative to dense attention and memory by length, {line_title(line)}.",
        tables=_tables(result, line),
    )


def _caption(result: BenchResult, line: str) -> str:
    heads, width = result.settings["heads"], result.settings["head_width"]
    return (
        f"{line_title(line)}; one sequence, {heads} heads of {width}, {threads_text(result)}, medians; the ratio's "
        "bars are the range over the rounds, in each of which every side ran once. All axes are logarithmic."
    )


def _look(name: str) -> Look:
    words = name.split("-")
    stem = name.removesuffix("-1r").removesuffix("-2r").removesuffix("-cpu")
    is_tree = words[0] == "tree"
    colour = _BACKEND_COLOURS.get(words[-1], "accent") if is_tree else _COLOURS.get(stem, "muted")
    return Look(colour, next((_DASHES[word] for word in words if word in _DASHES), "solid"))
