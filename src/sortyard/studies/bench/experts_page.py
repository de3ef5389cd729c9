"""The tables and the page of `bench experts`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.by_length import (
    Look,
    Panel,
    Series,
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
_COLOURS = {"dense": "ink", "sortyard": "accent", "transformers": "ochre", "naive": "bad"}
_BACKEND_COLOURS = {"reference": "muted", "fused": "green", "grouped": "low", "triton": "violet"}
_DASHES = {"compiled": "dot", "eager": "dot", "batched": "dash"}
_LINE_COLOURS = ("accent", "amber", "violet", "green", "low", "bad")
_TIMES_DENSE = "Times as long as dense"


def experts_text(result: BenchResult) -> str:
    """Write every table of a result, why cells are missing, and at the end ours beside dense and transformers."""
    blocks = [text_table(table) for line in lines_of(result) for table in _tables(result, line)]
    return "\n\n".join([*blocks, *skips_text(result), text_table(_summary_table(result))])


def experts_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: ours beside dense and transformers, then each line's times, ratios and memory."""
    notes = Table("What was compared", ("side", "what it is"), tuple(result.summary["sides"].items()))
    about = Section(id="sides", title="The sides", intro=_about(result), tables=(notes,))
    sections = [
        Section(id=line_slug(line), title=line_title(line), figures=(_figure(result, line),))
        for line in lines_of(result)
    ]
    return write_page(
        result,
        folder=folder,
        title="Routed experts, time and memory by tokens",
        verdict=_verdict(result),
        sections=[_overview(result), *sections, about],
    )


def _about(result: BenchResult) -> str:
    loads = [cell["max_over_fair_load"] for cell in result.cells.values()]
    return (
        "Weights and tokens are random and the same for all, and so is the choice of experts, which a random gate "
        f"makes nearly even: the busiest expert has {min(loads):.2f} to {max(loads):.2f} times its fair share. A "
        "token's experts together are as wide as the dense layer. Before it is timed, a side's output and gradients "
        "are compared with float64 on a few tokens. Memory is the peak of one call in a process of its own, on top of "
        "its inputs."
    )


def _summary_table(result: BenchResult) -> Table:
    """Three rows a line: ours and the fastest of transformers' functions over dense, and one over the other."""
    lengths = sorted({cell["length"] for cell in result.cells.values()})
    readings: tuple[tuple[str, Callable[[Json], str]], ...] = (
        ("sortyard / dense", lambda found: number_text(_median(found, "ours"))),
        ("transformers' best / dense", _peer_text),
        ("transformers' best / sortyard", lambda found: times_text(_median(found, "faster_than_peer"))),
    )
    rows = []
    for line in lines_of(result):
        found = {n: result.summary["cells"].get(f"{line}/{n}") for n in lengths}
        rows += [
            (f"{line_title(line)}: {name}", *(MISSING if found[n] is None else read(found[n]) for n in lengths))
            for name, read in readings
        ]
    return Table("Time over that of the dense layer (medians)", ("", *map(length_text, lengths)), tuple(rows))


def _peer_text(found: Json) -> str:
    ratio = _median(found, "peer")
    return MISSING if ratio is None else f"{number_text(ratio)} {found['best_peer'].rpartition('-')[2]}"


def _median(found: Json, field: str) -> float | None:
    return None if found[field] is None else float(found[field]["median"])


def _tables(result: BenchResult, line: str) -> tuple[Table, ...]:
    cells, title = line_cells(result, line), line_title(line)
    tables = [
        side_table(f"{title}: time of a call (median)", cells, value=lambda r: seconds_text(r["median_seconds"])),
        side_table(f"{title}: times as long as dense (median)", cells,
                   value=lambda r: number_text(_median(r, "times_dense"))),
    ]  # fmt: skip
    if has_memory(cells):
        tables.append(
            side_table(f"{title}: peak extra memory in MB", cells,
                       value=lambda r: megabytes_text(r["peak_extra_bytes"]))
        )  # fmt: skip
    return tuple(tables)


def _verdict(result: BenchResult) -> str:
    """Ours over dense at the most tokens of every line, and the range against transformers' fastest."""
    sentences = []
    for line in lines_of(result):
        found = [(n, result.summary["cells"][f"{line}/{n}"]) for n in line_cells(result, line)]
        timed = [(n, ratio) for n, cell in found if (ratio := _median(cell, "ours")) is not None]
        if timed:
            length, ratio = max(timed)
            sentences.append(f"{ratio:.2f} times as long at {length_text(length)} tokens ({line_title(line)})")
    if not sentences:
        return "Neither ours nor the dense layer was timed."
    against = [ratio for cell in result.summary["cells"].values() if (ratio := _median(cell, "faster_than_peer"))]
    words = f"In the same run as a dense layer of equal active work, ours takes {', '.join(sentences)}."
    if not against:
        return words
    return (
        f"{words} Transformers' fastest function takes {min(against):.2f} to {max(against):.2f} times as long as ours."
    )


def _overview(result: BenchResult) -> Section:
    series = []
    colours = [_LINE_COLOURS[i % len(_LINE_COLOURS)] for i in range(len(lines_of(result)))]
    for line, colour in zip(lines_of(result), colours, strict=True):
        found = {n: result.summary["cells"][f"{line}/{n}"] for n in line_cells(result, line)}
        for name, field, dash in (("sortyard", "ours", "solid"), ("transformers' best", "peer", "dot")):
            records = {n: {"times_dense": cell[field]} for n, cell in found.items()}
            series.append(Series(f"{line_title(line)}: {name}", Look(colour, dash), records))
    figure = length_figure(
        [(Panel(_TIMES_DENSE, lambda r: _median(r, "times_dense"), spread="times_dense"), series)],
        id="overview-picture",
        title="Ours and the fastest of transformers' functions over dense",
        caption="1 is the dense layer of equal active work; lower is better. Solid: ours; dotted: transformers' "
        "fastest function in the same run. Bars are the range over the rounds.",
        description="Time over that of the dense layer by tokens, ours and transformers' fastest, a line each.",
        tables=(_summary_table(result),),
    )
    return Section(id="overview", title="Beside dense and transformers", figures=(figure,))


def _figure(result: BenchResult, line: str) -> Figure:
    cells = line_cells(result, line)
    panels = [
        Panel("Seconds of a call", lambda r: r["median_seconds"]),
        Panel(_TIMES_DENSE, lambda r: _median(r, "times_dense"), spread="times_dense"),
    ]
    panels += memory_panels(cells)
    series = line_series(cells, _look)
    width, inner = result.settings["hidden_size"], result.settings["intermediate_size"]
    return length_figure(
        [(panel, series) for panel in panels],
        id=f"{line_slug(line)}-picture",
        title=line_title(line),
        caption=f"{line_title(line)}; tokens of width {width}, dense inner width {inner}, {threads_text(result)}, "
        "medians; the ratio's bars are the range over the rounds, in each of which every side ran once. All axes are "
        "logarithmic.",
        description=f"Time, time over that of dense, and memory by tokens, {line_title(line)}.",
        tables=_tables(result, line),
    )


def _look(name: str) -> Look:
    family, _, kind = name.partition("-")
    return Look(_BACKEND_COLOURS.get(kind, _COLOURS.get(family, "muted")), _DASHES.get(kind, "solid"))
