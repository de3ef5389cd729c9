"""The tables and the page of `bench encoder`."""

from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Table, plain
from sortyard.reports.sections import Section
from sortyard.studies.bench.by_length import (
    Look,
    Panel,
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
from sortyard.studies.bench.encoder_cases import SHORT
from sortyard.studies.bench.encoder_summary import OURS
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
CLAIM = 1.8  # times faster than BERT-large at inference: claim C5 of the seed article
_COLOURS = {"bert-large": "ink", "bert-base": "muted", "modernbert-large": "ochre", "sortyard": "accent"}
_LOOKS = {
    "sortyard-compiled": Look("accent", "dot"),
    "sortyard-20": Look("green"),
    "sortyard-dense-attention": Look("violet"),
    "sortyard-all-active": Look("bad"),
}


def encoder_text(result: BenchResult) -> str:
    """Write every table of a result, why cells are missing, and at the end ours beside the others."""
    blocks = [text_table(table) for line in lines_of(result) for table in _tables(result, line)]
    return "\n\n".join([*blocks, text_table(_sizes_table(result)), *skips_text(result), *_summaries_text(result)])


def encoder_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: ours beside the others, short sentences, lengths, what each factor gives, and the sides."""
    notes = Table("What was compared", ("side", "what it is"), tuple(result.summary["sides"].items()))
    lines = [
        Section(id=line_slug(line), title=_title(line), figures=(_figure(result, line),)) for line in lines_of(result)
    ]
    rivals = Section(
        id="rivals", title="Beside BERT and ModernBERT", intro=_about(), tables=(_rivals_table(result),)
    )  # fmt: skip
    factors = Section(
        id="factors", title="Where it comes from", tables=(_factors_table(result), *_precision_tables(result))
    )
    sizes = Section(id="sides", title="The sides", tables=(_sizes_table(result), notes))
    return write_page(
        result,
        folder=folder,
        title="Whole encoders, tokens a second",
        verdict=_verdict(result),
        sections=[rivals, *lines, factors, sizes],
    )


def encoder_figures(result: BenchResult) -> tuple[Figure, ...]:
    """The picture of every kind of texts and number format."""
    return tuple(_figure(result, line) for line in lines_of(result))


def _about() -> str:
    return (
        "Equal total parameters, fewer active ones: at short lengths the gain comes from there and from not computing "
        "padding, at long lengths from attention too. Weights are random, so nothing is said of quality. Short "
        "sentences are as long as SST-2's; real tokens are counted, not padding."
    )


def _verdict(result: BenchResult) -> str:
    """Say how the seed's claim comes out, against batches as people make them."""
    parts = []
    for key, rivals in result.summary["rivals"].items():
        dtype, workload, length = key.split("/")
        for found in rivals:
            if found["ours"].partition("@")[0] != OURS or found["rival"] not in ("bert-large@dynamic", "bert-large"):
                continue
            place = "SST-2's lengths" if workload == SHORT else f"{length_text(int(length))} tokens"
            parts.append(
                (f"{times_text(found['times_faster']['median'])} at {place} in {dtype}", found["times_faster"])
            )
    if not parts:
        return "BERT-large was not measured."
    holds = all(ratio["median"] >= CLAIM for _, ratio in parts)
    return (
        f"Beside BERT-large (dynamic batches of 32 where sentences are short): {', '.join(text for text, _ in parts)}. "
        f"The claim of {CLAIM}x {'holds' if holds else 'does not hold everywhere'}, with as many parameters in all and "
        "fewer active."
    )


def _title(line: str) -> str:
    dtype, _, workload = line.partition("/")
    return f"Sentences of SST-2's lengths, {dtype}" if workload == SHORT else f"Sequences of one length, {dtype}"


def _tables(result: BenchResult, line: str) -> tuple[Table, ...]:
    cells = line_cells(result, line)
    if line.endswith(SHORT):
        (sides,) = cells.values()
        header = ("side", "time of a call", "sentences/s", "real tokens/s", "all / real tokens")
        rows = tuple(
            (
                name,
                seconds_text(record["median_seconds"]),
                number_text(record["sentences_per_second"], digits=1),
                number_text(record["tokens_per_second"], digits=0),
                number_text(record["all_tokens"] / record["real_tokens"]),
            )
            for name, record in sides.items()
        )
        return (Table(f"{_title(line)} (medians)", header, rows),)
    tables = [
        side_table(f"{_title(line)}: tokens a second (median)", cells,
                   value=lambda r: number_text(r["tokens_per_second"], digits=0)),
        side_table(f"{_title(line)}: peak memory besides weights, MB", cells,
                   value=lambda r: megabytes_text(r["peak_extra_bytes"])),
    ]  # fmt: skip
    return tuple(tables)


def _figure(result: BenchResult, line: str) -> Figure:
    cells = line_cells(result, line)
    if line.endswith(SHORT):
        return _bars(result, line)
    panels = [Panel("Tokens a second", lambda r: r["tokens_per_second"]), *memory_panels(cells)]
    series = line_series(cells, _look)
    return length_figure(
        [(panel, series) for panel in panels],
        id=f"{line_slug(line)}-picture",
        title=_title(line),
        caption=f"{line_title(line)}, {threads_text(result)}, medians of alternated runs. All axes are logarithmic.",
        description=f"Tokens a second and memory by length, {line_title(line)}, a line for each encoder.",
        tables=_tables(result, line),
    )


def _bars(result: BenchResult, line: str) -> Figure:
    (sides,) = line_cells(result, line).values()
    timed = {name: record for name, record in sides.items() if record["sentences_per_second"]}
    names = list(reversed(timed))
    trace: Json = {
        "type": "bar", "orientation": "h", "y": [plain(name) for name in names],
        "x": [timed[name]["sentences_per_second"] for name in names],
        "marker": {"color": [f"theme:{_look(name.partition('@')[0]).colour}" for name in names]},
        "hovertemplate": "%{y}: %{x:.3~g} sentences/s<extra></extra>",
    }  # fmt: skip
    layout: Json = {
        "margin": {"l": 220, "r": 16, "t": 16, "b": 48}, "showlegend": False,
        "xaxis": {"title": {"text": "sentences a second"}, "rangemode": "tozero"}, "yaxis": {"automargin": True},
    }  # fmt: skip
    return Figure(
        id=f"{line_slug(line)}-picture", title=_title(line),
        caption=f"{threads_text(result)}, medians of alternated runs; what stands after @ is the kind of batches.",
        description=f"Sentences a second, {line_title(line)}, a bar for each encoder and kind of batches.",
        height=80 + 30 * len(names), data=(trace,), layout=layout, tables=_tables(result, line),
    )  # fmt: skip


def _look(name: str) -> Look:
    return _LOOKS.get(name) or Look(_COLOURS.get(name, "muted"))


def _summaries_text(result: BenchResult) -> list[str]:
    tables = (_factors_table(result), *_precision_tables(result), *_growth_tables(result), _rivals_table(result))
    return [text_table(table) for table in tables]


def _cell_title(key: str) -> str:
    dtype, workload, length = key.split("/")
    return f"{dtype}, {'SST-2 lengths' if workload == SHORT else length_text(int(length))}"


def _range_text(ratio: Json) -> str:
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def _rivals_table(result: BenchResult) -> Table:
    rows = tuple(
        (_cell_title(key), found["rival"], found["ours"], times_text(found["times_faster"]["median"]),
         _range_text(found["times_faster"]))
        for key, rivals in result.summary["rivals"].items()
        for found in rivals
    )  # fmt: skip
    header = ("cell", "rival", "ours", "times faster", "range over the rounds")
    return Table("Real tokens a second, ours over theirs", header, rows)


def _factors_table(result: BenchResult) -> Table:
    rows = tuple(
        (
            _cell_title(key),
            step["factor"],
            times_text(step["times_faster"]["median"]),
            _range_text(step["times_faster"]),
        )
        for key, steps in result.summary["factors"].items()
        for step in steps
    )
    return Table("What each step from BERT-large to ours gives", ("cell", "step", "times faster", "range"), rows)


def _precision_tables(result: BenchResult) -> tuple[Table, ...]:
    found = result.summary["precision"]
    rows = tuple(
        (_cell_title(f"bf16/{key}"), name, times_text(ratio))
        for key, sides in found.items()
        for name, ratio in sides.items()
    )
    return (
        Table("bf16 over fp32 (medians of two cells, not alternated)", ("cell", "side", "times faster"), rows),
    ) * bool(rows)


def _growth_tables(result: BenchResult) -> tuple[Table, ...]:
    rows = []
    for line, sides in result.summary["growth"].items():
        for name, found in sides.items():
            memory = found["memory"]
            over = (
                MISSING if memory is None else f"{memory['over_the_line']:.2f} at {length_text(memory['lengths'][-1])}"
            )
            lengths = f"{length_text(found['longest'])} over {length_text(found['shortest'])}"
            rows.append((_title(line), name, f"{found['speed_kept']:.0%} ({lengths})", over))
    header = ("cells", "side", "speed kept", "memory over the line through the two lengths before")
    return (Table("How speed and memory grow", header, tuple(rows)),) * bool(rows)


def _sizes_table(result: BenchResult) -> Table:
    records = {
        name.partition("@")[0].removesuffix("-compiled"): record
        for cell in result.cells.values()
        for name, record in cell["sides"].items()
    }
    rows = tuple(
        (name, f"{r['total_parameters'] / 1e6:.0f} M", f"{r['active_parameters'] / 1e6:.0f} M",
         f"{r['active_parameters'] / r['total_parameters']:.0%}")
        for name, r in records.items()
    )  # fmt: skip
    return Table("Parameters, embeddings included", ("encoder", "total", "active", "share"), rows)
