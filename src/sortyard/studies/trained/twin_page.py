"""The tables and the page of `study twin`."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, number_text, text_table
from sortyard.studies.trained.arms import DENSE_ACTIVE, DENSE_TOTAL, OURS
from sortyard.studies.trained.curves import AXES
from sortyard.studies.trained.examples import examples_table

Json = dict[str, Any]
COLOURS = {OURS: "accent", DENSE_ACTIVE: "ink", DENSE_TOTAL: "amber"}
_AXIS_NAMES = {"steps": "steps", "flops": "arithmetic", "processor_seconds": "processor time"}
_AXIS_TITLES = {"steps": "optimizer steps", "flops": "FLOPs", "processor_seconds": "processor seconds"}


def twin_text(result: BenchResult) -> str:
    """Write the tables and the verdict as text."""
    if not result.cells:
        return "nothing was trained"
    return "\n\n".join([*(text_table(table) for table in _tables(result)), *_sentences(result)])


def twin_page(result: BenchResult, folder: Path) -> Path:
    """Write twin.html: curves against steps, arithmetic and time, and what follows."""
    about = (
        "All arms see the same rows in the same order; within a seed they differ in nothing but attention and "
        "feed-forward layers. The learning rate falls over the whole run, so a loss in the middle of one is higher "
        "than that of a run planned to end there: what ours spends until the twin's last loss is overstated. Where the "
        "losses are read at less than 100 % of the twin's cost, the twin is in the middle of its run and ours at its "
        "end: such a row overstates ours; less than 100 % of ours overstates the twin."
    )
    section = Section(
        id="tables", title="At equal cost", intro=about, tables=_tables(result)
    )  # fmt: skip
    return write_page(
        result, folder=folder, title="A sparse model and its dense twins", verdict=" ".join(_sentences(result)),
        sections=[Section(id="curves", title="Learning curves", figures=twin_figures(result)), section],
    )  # fmt: skip


def twin_figures(result: BenchResult) -> tuple[Figure, ...]:
    """Held-out loss against each kind of cost; a line a seed."""
    return tuple(_figure(result, axis) for axis in AXES)


def _figure(result: BenchResult, axis: str) -> Figure:
    stack = Stack()
    cells = [cell for cell in result.cells.values() if cell[axis]]
    first = {cell["arm"]: cell["seed"] for cell in reversed(cells)}
    traces = [_trace(cell, axis=axis, is_named=cell["seed"] == first[cell["arm"]]) for cell in cells]
    last = [loss for cell in result.cells.values() for loss in cell["losses"][len(cell["losses"]) // 4 :]]
    span = [min(last) - 0.05, max(last) + 0.05] if last else None
    stack.add("Held-out loss, nats", height=340, traces=traces, axis={"range": span} if span else {})
    height = stack.finish(x_title=_AXIS_TITLES[axis])
    stack.layout |= {"showlegend": True, "legend": {"x": 1, "y": 1, "xanchor": "right", "yanchor": "top"}}
    rows = tuple(
        (f"{cell['arm']}, seed {cell['seed']}", f"{cell[axis][-1]:,.4g}", f"{cell['losses'][-1]:.4f}") for cell in cells
    )
    return Figure(
        id=f"twin-{axis}", title=f"Against {_AXIS_NAMES[axis]}", height=height, data=tuple(stack.traces),
        layout=stack.layout,
        caption=f"A line a seed, against {_AXIS_TITLES[axis]}; the first quarter of the run lies above the picture.",
        description=f"Held-out loss against {_AXIS_TITLES[axis]}, the sparse model and its dense twins.",
        tables=(Table("At the end", ("run", _AXIS_TITLES[axis], "held-out loss"), rows),),
    )  # fmt: skip


def _trace(cell: Json, *, axis: str, is_named: bool) -> Json:
    arm = cell["arm"]
    return {
        "type": "scatter", "mode": "lines", "x": cell[axis], "y": cell["losses"], "name": arm, "legendgroup": arm,
        "showlegend": is_named, "line": {"color": f"theme:{COLOURS[arm]}", "width": 2},
        "hovertemplate": f"{arm}, seed {cell['seed']}: %{{y:.4f}} at %{{x:.4~g}}<extra></extra>",
    }  # fmt: skip


def _tables(result: BenchResult) -> tuple[Table, ...]:
    summary = result.summary
    tables = [_arms_table(summary["arms"]), _gains_table(summary)]
    tables += [_efficiency_table(summary["efficiency"])] if summary["efficiency"] else []
    return tuple([*tables, examples_table(summary["on_examples"], first=OURS)] if summary["on_examples"] else tables)


def _arms_table(arms: Mapping[str, Json]) -> Table:
    rows = tuple(
        (
            name,
            f"{arm['parameters']:,}",
            f"{arm['active_parameters']:,}",
            MISSING if arm["gap"] is None else f"{arm['gap']:+.1%}",
            f"{statistics.fmean(arm['losses'].values()):.4f}",
            f"{min(arm['losses'].values()):.4f} - {max(arm['losses'].values()):.4f}",
            str(len(arm["losses"])),
            f"{arm['flops']:.3g}",
            number_text(arm["processor_seconds"], digits=0),
            f"{arm['sparsity']:.0%}",
            _scores_text(arm["scores"]),
        )
        for name, arm in arms.items()
    )
    header = (
        "arm", "parameters", "active", "off equal", "held-out loss", "range", "seeds", "FLOPs", "processor s",
        "sparsity", "task",
    )  # fmt: skip
    return Table("The arms, at the end of training", header, rows)


def _scores_text(scores: Mapping[str, float]) -> str:
    return f"{100 * statistics.median(scores.values()):.1f}" if scores else MISSING


def _gains_table(summary: Json) -> Table:
    rows = [
        (f"{_AXIS_NAMES[axis]}, against {arm}", *_gain_cells(gain, scale=1, digits=4), *_share_cells(gain))
        for arm, gains in summary["gains"].items()
        for axis, gain in gains.items()
    ]
    rows += [
        (f"on the task, against {arm}, points", *_gain_cells(gain, scale=100, digits=2), MISSING, MISSING)
        for arm, gain in summary["scores"].items()
    ]
    header = ("equal", "gain", "95 % interval", "at of our cost", "at of the twin's cost")
    return Table("How much lower our loss is at equal cost, in nats", header, tuple(rows))


def _share_cells(gain: Json | None) -> tuple[str, str]:
    """At which part of each side's own cost a row is read."""
    shares = None if gain is None else gain.get("shares")  # not kept by earlier versions
    if shares is None:
        return MISSING, MISSING
    return f"{shares['ours']:.0%}", f"{shares['other']:.0%}"


def _gain_cells(gain: Json | None, *, scale: float, digits: int) -> tuple[str, str]:
    if gain is None:
        return MISSING, MISSING
    if gain["low"] is None:
        return f"{scale * gain['mean']:+.{digits}f}", "one seed"
    low, high = (f"{scale * gain[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{scale * gain['mean']:+.{digits}f}", f"{low} to {high}"


def _efficiency_table(found: Json) -> Table:
    rows = tuple(
        (
            _AXIS_NAMES[axis],
            "; ".join("not reached" if v is None else f"{100 * v:+.0f} %" for v in one["by_seed"].values()),
            efficiency_text(one),
        )
        for axis, one in found.items()
    )
    caption = "What the dense twin of equal active parameters spends until its last loss, over what ours spends, less 1"
    return Table(caption, ("in", "seed by seed", "mean and 95 % interval"), rows)


def efficiency_text(one: Json) -> str:
    """Write the efficiency in one kind of cost: its mean with the interval, or that the loss is not reached."""
    gain = one["gain"]
    if gain is not None:
        mean, between = _gain_cells(gain, scale=100, digits=0)
        return f"{mean} % ({between})"
    seeds = list(one["by_seed"].values())
    missed = sum(value is None for value in seeds)
    most = "" if one["at_most"] is None else f", so at most {100 * one['at_most']:+.0f} %"
    return f"not reached in {missed} of {len(seeds)} seeds{most}" if seeds else MISSING


def _sentences(result: BenchResult) -> list[str]:
    found = result.summary["efficiency"]
    if not found:
        return ["The sparse model and its twin of equal active parameters have not both been trained."]
    gain = result.summary["gains"][DENSE_ACTIVE]["steps"]
    mean, between = _gain_cells(gain, scale=1, digits=4)
    return [
        f"After equal steps our held-out loss is {mean} nats better than the dense twin's of equal active parameters "
        f"({between}).",
        f"Training efficiency, claimed +40 %: {efficiency_text(found['processor_seconds'])} in processor time, "
        f"{efficiency_text(found['flops'])} in arithmetic, {efficiency_text(found['steps'])} in steps.",
    ]
