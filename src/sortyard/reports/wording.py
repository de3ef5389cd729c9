"""Numbers and verdicts as people read them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

PERCENT_METRICS = frozenset({"accuracy", "f1", "f1_macro"})
METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "combined_score": "mean of the metrics",
    "loss": "loss",
    "perplexity": "perplexity",
}
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Bar:
    """One row of the comparison at the top: a name, a score as text, and its place between 0 and 1."""

    name: str
    score: str
    share: float
    low: float | None
    high: float | None
    is_model: bool


def count(value: float) -> str:
    """Write a number with a unit: 41.2M."""
    for size, unit in UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Write seconds as the two largest fitting units."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(num_bytes: float) -> str:
    """Write bytes as GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def moment(iso: str) -> tuple[str, str]:
    """Write an ISO 8601 time as a date and a time of day; leave what is none as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso, ""
    return f"{when.day} {when:%b %Y}", f"{when:%H:%M %Z}".strip()


def metric_name(metric: str) -> str:
    """Return a metric's name in words."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_value(value: float, *, metric: str, unit: bool = True) -> str:
    """Write a score: shares in per cent, correlations as they are."""
    if metric in PERCENT_METRICS:
        return f"{100 * value:.1f}" + (" %" if unit else "")
    return "not finite" if not math.isfinite(value) else f"{value:.3f}"


def verdict(
    *, metric: str, model: float, baselines: Sequence[tuple[str, float]], interval: Mapping[str, Any], n: int | None
) -> str:
    """Say in one or two plain sentences whether the model beats the bag of words (or else the best baseline).

    Args:
        metric: name of the score compared.
        model: the model's score.
        baselines: names and scores, at least one.
        interval: `low`, `high` and `level` of the model's score; may be empty.
        n: examples scored, where known.
    """
    name, other = next((pair for pair in baselines if "bag" in pair[0]), max(baselines, key=lambda pair: pair[1]))
    shown, against = (metric_value(value, metric=metric, unit=False) for value in (model, other))
    unit = " %" if metric in PERCENT_METRICS else f" ({metric_name(metric)})"
    baseline = "bag-of-words" if "bag" in name else name
    if shown == against:
        sentence = f"The model does NOT beat the {baseline} baseline, it equals it: {shown} against {against}{unit}."
    elif model > other:
        sentence = f"The model beats the {baseline} baseline: {shown} against {against}{unit}."
    else:
        sentence = f"The model does NOT beat the {baseline} baseline: {shown} against {against}{unit}."
    if interval and interval["low"] <= other <= interval["high"]:
        examples = f" (n = {n:,})" if n else ""
        low, high = (metric_value(interval[end], metric=metric, unit=False) for end in ("low", "high"))
        level = f"{100 * interval['level']:.0f} %"
        sentence += (
            f" The model's {level} interval, {low} to {high}{examples}, holds both, so the difference may be chance."
        )
    return sentence


def bars(
    *, metric: str, model: tuple[str, float], baselines: Sequence[tuple[str, float]], interval: Mapping[str, Any]
) -> list[Bar]:
    """Lay the model's score and the baselines' out as bars; a correlation below 0 has no length."""
    low, high = (_share(interval[end]) if interval else None for end in ("low", "high"))
    rows = [Bar(model[0], metric_value(model[1], metric=metric), _share(model[1]), low, high, True)]
    return rows + [
        Bar(name, metric_value(value, metric=metric), _share(value), None, None, False) for name, value in baselines
    ]


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
