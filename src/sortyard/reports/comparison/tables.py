"""A comparison as tables, for the terminal and beneath the page's pictures."""

from collections.abc import Callable
from typing import Any

from sortyard.reports.comparison.comparison import MISSING, Comparison
from sortyard.reports.figures import Table
from sortyard.reports.run_data import Record
from sortyard.reports.wording import PERCENT_METRICS, count, duration, metric_name, metric_value, size

MAX_CELL = 60
FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("kind", "kind", str),
    ("parameters", "parameters, total", count),
    ("active_parameters", "parameters, active", count),
    ("steps", "steps", "{:,}".format),
    ("tokens", "tokens", count),
    ("train_loss", "training loss, last tenth", "{:.4f}".format),
    ("held_out_loss", "held-out loss, last", "{:.4f}".format),
    ("best_held_out_loss", "held-out loss, best", "{:.4f}".format),
    ("best_at_step", "at step", "{:,}".format),
    ("utilisation", "utilisation of experts", "{:.3f}".format),
    ("sparsity", "attention sparsity", "{:.1%}".format),
    ("tokens_per_second", "tokens per second", "{:,.0f}".format),
    ("memory_bytes", "peak memory", size),
    ("seconds", "training time", duration),
)


def figures_table(comparison: Comparison) -> Table:
    """Return a row a figure and a column a run; figures that no run has are left out."""
    records = [run.record() for run in comparison.runs]
    rows = [
        (name, *(MISSING if record[key] is None else write(record[key]) for record in records))
        for key, name, write in FIGURES
        if any(record[key] is not None for record in records)
    ]
    return Table("Figures", ("", *(run.name for run in comparison.runs)), (*rows, *_score_rows(records)))


def _score_rows(records: list[Record]) -> list[tuple[str, ...]]:
    found = [{one["name"]: one for one in record["evaluations"]} for record in records]
    asked = dict.fromkeys((name, metric) for run in found for name, one in run.items() for metric in one["metrics"])
    return [
        (f"{name}: {metric_name(metric)}", *(_score(run.get(name), metric=metric) for run in found))
        for name, metric in asked
    ]


def _score(evaluation: Record | None, *, metric: str) -> str:
    if evaluation is None or metric not in evaluation["metrics"]:
        return MISSING
    value = metric_value(evaluation["metrics"][metric], metric=metric)
    interval = evaluation["interval"]
    if not interval or metric != evaluation["main_metric"]:
        return value
    low, high = (metric_value(interval[end], metric=metric, unit=False) for end in ("low", "high"))
    return f"{value} ({low} to {high})"


def differing_table(comparison: Comparison) -> Table:
    """Return the keys of the recipes that differ."""
    rows = tuple((key, *map(_shortened, values)) for key, values in comparison.differing.items())
    return Table("Recipe keys that differ", ("key", *(run.name for run in comparison.runs)), rows)


def paired_table(comparison: Comparison) -> Table:
    """Return the differences on the same examples; those of shares in points."""
    rows = tuple(
        (
            f"{one.second} - {one.first}",
            f"{one.evaluation}: {metric_name(one.metric)}",
            f"{one.difference.num_examples:,}",
            _signed(one.difference.value, metric=one.metric),
            " to ".join(_signed(end, metric=one.metric) for end in (one.difference.low, one.difference.high)),
            "yes" if one.difference.excludes_zero else "no",
        )
        for one in comparison.paired
    )
    header = ("runs", "score", "examples", "difference, points or units", "95 % interval", "told apart")
    return Table("Differences on the same examples (paired bootstrap)", header, rows)


def _signed(value: float, *, metric: str) -> str:
    return f"{100 * value:+.1f}" if metric in PERCENT_METRICS else f"{value:+.3f}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CELL else f"... {text[4 - MAX_CELL :]}"
