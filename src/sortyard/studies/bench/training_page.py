"""The tables and the page of `bench training`."""

from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import threads_text, write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, length_text, megabytes_text, number_text, seconds_text, text_table

Json = dict[str, Any]
_TITLES = {
    "checkpointing": "Activation checkpointing",
    "precision": "Number formats",
    "twin": "The dense twin and the sparse model",
    "accumulation": "One batch and the same in portions",
    "packing": "Padded and packed rows",
}
_PANELS = (("Seconds", "ink", "times_as_long"), ("Peak memory", "accent", "memory"))


def training_text(result: BenchResult) -> str:
    """Write every table of a result, and why sides are missing, as text."""
    skips = [
        f"{key}: {name} skipped: {record['skipped']}"
        for key, cell in result.cells.items()
        for name, record in cell["sides"].items()
        if record["skipped"]
    ]
    tables = [_topic_table(result, topic) for topic in _topics(result)]
    return "\n\n".join([*map(text_table, [*tables, _claims_table(result)]), *skips])


def training_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: the claims beside what was measured, and a picture of each topic."""
    settings = result.settings
    intro = (
        f"Width {settings['hidden_size']}, {settings['layers']} layers, {settings['tokens']:,} tokens a step, "
        f"vocabulary {settings['vocabulary']:,}, {threads_text(result)}; random weights and tokens. Seconds are "
        f"{settings['seconds_are']}, medians. Memory is the peak of what torch allocates in a step on top of weights "
        "and the optimizer's moments: gradients and activations."
    )
    claims = Section(id="claims", title="Claimed and measured", intro=intro, tables=(_claims_table(result),))
    sections = [
        Section(id=topic, title=_TITLES[topic], figures=(_figure(result, topic),), tables=(_notes(result, topic),))
        for topic in _topics(result)
    ]
    return write_page(
        result, folder=folder, title="A training step, time and memory", verdict=_verdict(result),
        sections=[claims, *sections],
    )  # fmt: skip


def training_figures(result: BenchResult, topic: str) -> tuple[Figure, ...]:
    """The picture of a topic, where it was measured."""
    return (_figure(result, topic),) if topic in _topics(result) else ()


def _topics(result: BenchResult) -> list[str]:
    return list(dict.fromkeys(cell["topic"] for cell in result.cells.values()))


def _verdict(result: BenchResult) -> str:
    judged = [claim for claim in result.summary["claims"] if claim["holds"] is not None]
    held = sum(claim["holds"] for claim in judged)
    return f"Of {len(judged)} rows that set a claim of the article beside a measurement here, {held} hold."


def _claims_table(result: BenchResult) -> Table:
    rows = tuple(
        (claim["claim"], claim["cell"], claim["words"], _measured(claim), _holds(claim["holds"]))
        for claim in result.summary["claims"]
    )
    return Table("Claims", ("claim", "cell", "what", "measured", "holds"), rows)


def _measured(claim: Json) -> str:
    value = claim["measured"]
    if value is None:
        return MISSING
    if "more_time" in claim:
        return f"{value:.0%} less, {claim['more_time']:+.0%} time"
    return f"{value:.1e}" if claim["claim"] == "C10" else f"{value:.2f}x"


def _holds(holds: bool | None) -> str:
    return {None: "open", True: "yes", False: "no"}[holds]


def _topic_table(result: BenchResult, topic: str) -> Table:
    rows = [
        (
            f"{length_text(cell['length'])} tokens, {name}",
            seconds_text(record["median_seconds"]),
            _spread(record.get("times_as_long")),
            megabytes_text(record["peak_extra_bytes"]),
            number_text(_relative_memory(cell, record)),
            f"{record['real_tokens_per_second']:,.0f}" if record["seconds"] else MISSING,
        )
        for cell in _cells(result, topic)
        for name, record in cell["sides"].items()
    ]
    header = ("", "step", "times as long (range)", "MB", "times the memory", "real tokens/s")
    return Table(_TITLES[topic], header, tuple(rows))


def _notes(result: BenchResult, topic: str) -> Table:
    return Table("What was compared", ("side", "what it is"), tuple(result.summary["sides"][topic].items()))


def _cells(result: BenchResult, topic: str) -> list[Json]:
    return [cell for cell in result.cells.values() if cell["topic"] == topic]


def _spread(ratio: Json | None) -> str:
    return MISSING if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _relative_memory(cell: Json, record: Json) -> float | None:
    base = next(iter(cell["sides"].values()))["peak_extra_bytes"]
    own = record["peak_extra_bytes"]
    return own / base if base and own else None


def _figure(result: BenchResult, topic: str) -> Figure:
    timed = [(c, n, r) for c in _cells(result, topic) for n, r in c["sides"].items() if r.get("times_as_long")]
    labels = [f"{length_text(cell['length'])}, {name}" for cell, name, _ in timed]
    values = {
        "times_as_long": [record["times_as_long"]["median"] for _, _, record in timed],
        "memory": [_relative_memory(cell, record) for cell, _, record in timed],
    }
    bars = tuple(
        {
            "type": "bar", "orientation": "h", "name": name, "y": labels, "x": values[field],
            "marker": {"color": f"theme:{colour}"}, "hovertemplate": f"{name}: %{{x:.2f}}<extra>%{{y}}</extra>",
        }
        for name, colour, field in _PANELS
    )  # fmt: skip
    layout = {
        "barmode": "group", "margin": {"l": 130, "r": 16, "t": 16, "b": 48}, "showlegend": True,
        "xaxis": {"title": {"text": "times that of the first side"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }  # fmt: skip
    return Figure(
        id=f"{topic}-picture", title=_TITLES[topic], height=90 + 56 * len(labels), data=bars, layout=layout,
        caption="Seconds and peak memory of a step over those of the first side at the same length; 1 is equal.",
        description=f"{_TITLES[topic]}: time and memory of a step beside the first side.",
        tables=(_topic_table(result, topic),),
    )  # fmt: skip
