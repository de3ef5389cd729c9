"""The tables and the page of `bench dynamic-buckets`."""

from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import length_axis, value_axis, write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, length_text, megabytes_text, seconds_text, text_table, times_text

Json = dict[str, Any]
_LOOKS = {"tree": ("accent", "Tree"), "rounds": ("amber", "Hash rounds")}


def dynamic_text(result: BenchResult) -> str:
    """Write the claim beside what was measured, then every cell, as text."""
    return "\n\n".join([text_table(_claim_table(result)), *(text_table(_cell_table(result, s)) for s in _LOOKS)])


def dynamic_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: the claim beside what was measured, and a picture of each selection."""
    mix = result.settings["mix"]
    about = (
        f"The mix is {len(mix)} sequences of {min(mix):,} to {max(mix):,} tokens, {sum(mix):,} in all, drawn "
        f"log-uniformly with seed {result.seed} and packed into one row. Below about "
        f"{16 * result.settings['fixed_buckets']:,} tokens fixed buckets are smaller than 16 keys, so they read fewer "
        "keys and need less memory; above, each doubles with the length."
    )
    claim = Section(id="claim", title="Claimed and measured", intro=about, tables=(_claim_table(result),))
    sections = [Section(id=name, title=title, figures=(_figure(result, name),)) for name, (_, title) in _LOOKS.items()]
    verdict = " ".join(_sentence(found) for found in result.summary["on_the_mix"])
    return write_page(
        result, folder=folder, title="Do buckets that follow the length save memory?", verdict=verdict,
        sections=[claim, *sections],
    )  # fmt: skip


def dynamic_figures(result: BenchResult) -> tuple[Figure, ...]:
    """The picture of every selection."""
    return tuple(_figure(result, name) for name in _LOOKS)


def _sentence(found: Json) -> str:
    where = f"{_LOOKS[found['selection']][1]}, {found['direction']}"
    if found["measured_saving"] is None:
        return f"{where}: claimed {found['claimed_saving']:.0%}, not measured."
    verdict = "holds" if found["holds"] else "does not hold"
    return f"{where}: claimed {found['claimed_saving']:.0%}, measured {found['measured_saving']:.0%}: {verdict}."


def _claim_table(result: BenchResult) -> Table:
    rows = tuple(
        (
            f"{found['selection']}, {found['direction']}",
            f"{found['claimed_saving']:.0%}",
            _percent(found["measured_saving"]),
            MISSING if found["measured_saving"] is None else ("holds" if found["holds"] else "does not hold"),
            times_text(found["times_faster"]),
        )
        for found in result.summary["on_the_mix"]
    )
    header = ("on the mix", "claimed", "measured", "claim", "times faster")
    return Table("Peak memory saved against 64 fixed buckets (C2)", header, rows)


def _cell_table(result: BenchResult, selection: str) -> Table:
    rows = []
    for cell in _cells(result, selection):
        following, fixed = cell["sides"]["following"], cell["sides"]["fixed"]
        rows.append(
            (
                f"{_load_text(cell)}, {cell['direction']}",
                megabytes_text(following["peak_extra_bytes"]),
                megabytes_text(fixed["peak_extra_bytes"]),
                _percent(cell["memory_saved"]),
                seconds_text(following["median_seconds"]),
                seconds_text(fixed["median_seconds"]),
                times_text(cell["times_faster"]["median"]),
            )
        )
    header = ("tokens", "MB following", "MB fixed", "saved", "time following", "time fixed", "times faster")
    return Table(f"{_LOOKS[selection][1]}: buckets that follow the length, and 64 fixed ones", header, tuple(rows))


def _cells(result: BenchResult, selection: str) -> list[Json]:
    return [cell for cell in result.cells.values() if cell["selection"] == selection]


def _load_text(cell: Json) -> str:
    return length_text(int(cell["load"])) if cell["load"].isdigit() else f"mix of {cell['tokens']:,}"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{round(share, 2) + 0.0:.0%}"  # adding zero takes the sign off a zero


def _figure(result: BenchResult, selection: str) -> Figure:
    stack, title = Stack(), _LOOKS[selection][1]
    panels = (("Peak extra memory, MB", "peak_extra_bytes", 1e-6), ("Seconds of a call", "median_seconds", 1.0))
    for panel, field, scale in panels:
        traces = [
            _trace(result, selection, side=side, direction=direction, field=field, scale=scale, named=scale < 1)
            for direction in ("forward", "forward+backward")
            for side in ("following", "fixed")
        ]
        stack.add(panel, height=300, traces=traces, axis=value_axis(traces))
    height = stack.finish(x_title="tokens of one sequence")
    lengths = sorted({int(cell["load"]) for cell in _cells(result, selection) if cell["load"].isdigit()})
    stack.layout["xaxis"] |= length_axis(lengths)
    legend = {"x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top", "groupclick": "togglegroup"}
    stack.layout |= {"showlegend": True, "legend": legend}
    return Figure(
        id=f"{selection}-picture", title=title, height=height, data=tuple(stack.traces), layout=stack.layout,
        caption="Single sequences; both axes are logarithmic. Dotted: 64 fixed buckets.",
        description=f"{title}: memory and time by length, buckets that follow the length and 64 fixed ones.",
        tables=(_cell_table(result, selection),),
    )  # fmt: skip


def _trace(
    result: BenchResult, selection: str, *, side: str, direction: str, field: str, scale: float, named: bool
) -> Json:
    points = [
        (int(cell["load"]), cell["sides"][side][field] * scale)
        for cell in _cells(result, selection)
        if cell["direction"] == direction and cell["load"].isdigit() and cell["sides"][side][field]
    ]
    name = f"{side}, {direction}"
    colour = _LOOKS[selection][0] if direction == "forward" else "ink"
    dash = "solid" if side == "following" else "dot"
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name, "showlegend": named,
        "x": [x for x, _ in points], "y": [y for _, y in points], "marker": {"size": 5},
        "line": {"color": f"theme:{colour}", "width": 2, "dash": dash},
        "hovertemplate": f"{name}: %{{y:.3~g}} at %{{x:,}} tokens<extra></extra>",
    }  # fmt: skip
