"""A comparison as one offline page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sortyard.durable import replace_bytes
from sortyard.reports.comparison.comparison import ComparedRun, Comparison
from sortyard.reports.comparison.tables import differing_table, figures_table, paired_table
from sortyard.reports.figures import MAX_POINTS, Figure, Json, Table, panel_title, plain, smoothed, thin
from sortyard.reports.report import Page, render_page
from sortyard.reports.run_data import Record
from sortyard.reports.sections import Section
from sortyard.reports.wording import metric_name

COLORS = ("accent", "amber", "violet", "green", "ochre", "low", "high", "ink")
AXES = (("step", "steps"), ("tokens", "tokens"), ("seconds", "seconds of training"))
SMOOTHED_FROM = 60
PANEL_GAP = 0.04


def write_comparison(comparison: Comparison, *, out: Path) -> Path:
    """Write the page.

    Args:
        comparison: the runs.
        out: the file.

    Returns:
        The file.
    """
    names = [run.name for run in comparison.runs]
    page = Page(
        eyebrow=f"{len(names)} runs compared",
        title=" · ".join(names),
        verdict=verdict(comparison),
        bars=(),
        bars_note="",
        facts=(),
        commands=(),
        sections=tuple(_sections(comparison)),
        folder=", ".join(names),
    )
    replace_bytes(out, render_page(page).encode())
    return out


def verdict(comparison: Comparison) -> str:
    """Say in a sentence what the runs' scores, or else their losses, tell apart."""
    if comparison.paired:
        told = [one for one in comparison.paired if one.difference.excludes_zero]
        if not told:
            return "On the same examples no run can be told from the first: every interval of a difference holds zero."
        words = [
            f"{one.second} is {'better' if one.difference.value > 0 else 'worse'} than {one.first} in "
            f"{metric_name(one.metric)} on {one.evaluation}"
            for one in told
        ]
        return f"On the same examples {'; '.join(words)}: the interval of the difference leaves zero out."
    losses = [(loss, run.name) for run in comparison.runs if (loss := run.record()["held_out_loss"]) is not None]
    if len(losses) < 2:
        return "The runs share no scores and no held-out loss, so only their course can be compared."
    loss, name = min(losses)
    return f"The lowest held-out loss at the end is {loss:.4f}, of {name}; a loss has no interval here."


def _sections(comparison: Comparison) -> list[Section]:
    figure = loss_figure(comparison.runs)
    intro = "Figures of these runs are not all comparable:" if comparison.warnings else ""
    warnings = Table("Mind", ("what",), tuple((warning,) for warning in comparison.warnings))
    found = [
        Section(id="warnings", title="Comparable?", intro=intro, tables=(warnings,)) if comparison.warnings else None,
        Section(id="paired", title="Differences", tables=(paired_table(comparison),)) if comparison.paired else None,
        Section(id="figures", title="Figures", tables=(figures_table(comparison),)),
        Section(id="loss", title="Loss", figures=(figure,)) if figure else None,
        Section(id="recipes", title="Recipes", tables=(differing_table(comparison),)) if comparison.differing else None,
    ]
    return [section for section in found if section is not None]


def loss_figure(runs: tuple[ComparedRun, ...]) -> Figure | None:
    """Draw the runs' losses against steps, tokens and seconds; None where none was recorded."""
    shown = [run for run in runs if run.phase.train]
    if not shown:
        return None
    width = (1 - PANEL_GAP * (len(AXES) - 1)) / len(AXES)
    layout: Json = {
        "annotations": [], "margin": {"l": 56, "r": 16, "t": 70, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.22}, "yaxis": {"title": {"text": "loss"}},
    }  # fmt: skip
    traces: list[Json] = []
    for number, (key, title) in enumerate(AXES, start=1):
        suffix, left = "" if number == 1 else str(number), (number - 1) * (width + PANEL_GAP)
        layout[f"xaxis{suffix}"] = {"domain": [left, left + width], "title": {"text": title}, "tickformat": "~s"}
        layout["annotations"].append(panel_title(f"Loss by {title}", y=1, x=left))
        for color, run in zip(COLORS * (len(shown) // len(COLORS) + 1), shown, strict=False):
            traces += [
                trace | {"xaxis": f"x{suffix}"} for trace in _curves(run, key=key, color=color, named=number == 1)
            ]
    rows = tuple((run.name, *_ends(run.phase.train)) for run in shown)
    return Figure(
        id="loss-curves", title="Loss", height=420, data=tuple(traces), layout=layout,
        caption="Training loss (lines; a running mean where there are many records) and held-out loss (dots), the same "
        "values against steps, tokens and seconds.",
        description=f"Loss curves of {len(shown)} runs against steps, tokens and seconds.",
        tables=(Table("Training loss", ("run", "first", "last", "steps", "tokens", "seconds"), rows),),
    )  # fmt: skip


def _curves(run: ComparedRun, *, key: str, color: str, named: bool) -> list[Json]:
    records = [row for row in thin(run.phase.train, limit=MAX_POINTS) if _loss(row) is not None and key in row]
    losses = [_loss(row) for row in records]
    if len(losses) >= SMOOTHED_FROM:
        losses = smoothed(np.array(losses, dtype=float), window=max(5, len(losses) // 30)).tolist()
    at = _places(run.phase.train, key=key)
    held_out = [row for row in run.phase.evals if row.get("loss") is not None]
    look = {"type": "scatter", "name": plain(run.name), "legendgroup": run.name}
    line = look | {
        "mode": "lines", "x": [row[key] for row in records], "y": losses, "showlegend": named,
        "line": {"color": f"theme:{color}", "width": 2},
        "hovertemplate": f"{plain(run.name)}: %{{y:.4f}}<br>{key} %{{x:,}}<extra></extra>",
    }  # fmt: skip
    dots = look | {
        "mode": "markers", "x": [at(row["step"]) for row in held_out], "y": [row["loss"] for row in held_out],
        "marker": {"color": f"theme:{color}", "size": 8, "symbol": "diamond"}, "showlegend": False,
        "hovertemplate": f"{plain(run.name)}, held out: %{{y:.4f}}<br>{key} %{{x:,}}<extra></extra>",
    }  # fmt: skip
    return [line, dots]


def _loss(row: Record) -> float | None:
    return row.get("task_loss", row.get("loss"))


def _places(train: tuple[Record, ...], *, key: str) -> Callable[[int], float | None]:
    """Return what gives the tokens or seconds at a step: those of the nearest record."""

    def at(step: int) -> float | None:
        if key == "step":
            return step
        value: float | None = min(train, key=lambda row: abs(row["step"] - step)).get(key)
        return value

    return at


def _ends(train: tuple[Record, ...]) -> tuple[str, ...]:
    losses = [loss for row in train if (loss := _loss(row)) is not None]
    ends = (f"{losses[0]:.4f}", f"{losses[-1]:.4f}") if losses else ("-", "-")
    last = train[-1]
    return (*ends, f"{last['step']:,}", f"{last.get('tokens') or 0:,}", f"{last.get('seconds') or 0:,.0f}")
