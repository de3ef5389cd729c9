"""Pictures as plotly figures in plain dictionaries, each with its description and its numbers as a table.

Colours are written `theme:NAME`; the page puts its own colour NAME in, light or dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]
MAX_POINTS = 1000
MAX_TABLE_ROWS = 24
MAX_NAME = 16
MARGIN = {"l": 64, "r": 16, "t": 40, "b": 48}


@dataclass(frozen=True)
class Table:
    """The numbers of a picture, or sentences, which are set to the left and broken into lines."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_sentences: bool = False


@dataclass(frozen=True)
class Figure:
    """One picture of the page."""

    id: str
    title: str
    caption: str
    description: str
    height: int
    data: tuple[Json, ...]
    layout: Json
    tables: tuple[Table, ...] = ()
    narrow: bool = False

    def spec(self) -> Json:
        """Return what the page's script draws."""
        return {"data": list(self.data), "layout": self.layout | {"height": self.height}}


@dataclass
class Stack:
    """Panels beneath each other that share one horizontal axis."""

    traces: list[Json] = field(default_factory=list)
    layout: Json = field(
        default_factory=lambda: {"annotations": [], "shapes": [], "margin": MARGIN, "showlegend": False}
    )
    height: float = 0.0
    _panels: list[tuple[str, int, Json]] = field(default_factory=list)

    def add(self, title: str, *, height: int, traces: Sequence[Json], axis: Json) -> None:
        """Append a panel of a height in pixels."""
        number = len(self._panels) + 1
        suffix = "" if number == 1 else str(number)
        self._panels.append((title, height, axis))
        self.traces += [trace | {"xaxis": "x", "yaxis": f"y{suffix}"} for trace in traces]

    def mark(self, step: float, *, look: Json) -> None:
        """Draw a vertical line at a step in every panel, behind the curves."""
        for number in range(1, len(self._panels) + 1):
            span = {
                "x0": step,
                "x1": step,
                "xref": "x",
                "y0": 0,
                "y1": 1,
                "yref": f"y{number if number > 1 else ''} domain",
            }
            self.layout["shapes"].append({"type": "line", "layer": "below", "line": look, **span})

    def finish(self, *, x_title: str, gap: int = 46) -> int:
        """Place the panels from the top down and return the figure's height in pixels."""
        inner = sum(height for _, height, _ in self._panels) + gap * (len(self._panels) - 1)
        top = float(inner)
        for number, (title, height, axis) in enumerate(self._panels, start=1):
            suffix = "" if number == 1 else str(number)
            self.layout[f"yaxis{suffix}"] = {"domain": [(top - height) / inner, top / inner], "anchor": "x", **axis}
            self.layout["annotations"].append(panel_title(title, y=top / inner))
            top -= height + gap
        last = "" if len(self._panels) == 1 else str(len(self._panels))
        self.layout["xaxis"] = {"anchor": f"y{last}", "title": {"text": x_title}, "tickformat": "~s"}
        return inner + MARGIN["t"] + MARGIN["b"]


def panel_title(text: str, *, y: float, x: float = 0.0) -> Json:
    """Return a panel's name, set above its upper left corner."""
    font = {"size": 13, "color": "theme:ink"}
    place = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 6}
    return {"text": f"<b>{text}</b>", "showarrow": False, "font": font, **place}


def thin(values: Sequence[Any], *, limit: int) -> list[Any]:
    """Keep at most `limit` values, evenly spread, the first and last among them."""
    if len(values) <= limit:
        return list(values)
    chosen = np.unique(np.linspace(0, len(values) - 1, limit).round().astype(int))
    return [values[i] for i in chosen]


def line(x: Sequence[float], y: Sequence[float | None], *, name: str, color: str, **look: Any) -> Json:
    """Return a line of a panel; None breaks it."""
    style = {"color": f"theme:{color}", "width": look.pop("width", 2)}
    hover = f"{name}: %{{y:.4~g}}<br>step %{{x:,}}<extra></extra>"
    return {
        "type": "scatter", "mode": look.pop("mode", "lines"), "x": list(x), "y": list(y), "name": name,
        "line": style, "hovertemplate": hover, **look,
    }  # fmt: skip


def plain(text: str) -> str:
    """Escape a text from outside, as plotly reads its labels as a kind of HTML."""
    return escape(text, quote=False)


def smoothed(values: NDArray[np.float64], *, window: int) -> NDArray[np.float64]:
    """Average over a centred window that shrinks at both ends."""
    half, total = window // 2, np.concatenate([[0.0], np.nancumsum(values)])
    known = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    result: NDArray[np.float64] = (total[high] - total[low]) / np.maximum(known[high] - known[low], 1)
    return result


def confusion_figure(counts: Sequence[Sequence[int]], *, names: Sequence[str], id: str) -> Figure:  # noqa: A002
    """Draw how often each label met each prediction, shaded by the label's share."""
    matrix = np.asarray(counts, dtype=float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small, labels = len(names) <= 12, axis_names(names, limit=MAX_NAME)
    heat = {
        "type": "heatmap", "z": share.round(4).tolist(), "customdata": matrix.astype(int).tolist(),
        "zmin": 0, "zmax": 1, "showscale": False, "xgap": 2, "ygap": 2,
        "colorscale": [[0, "theme:surface"], [1, "theme:accent-fill"]],
        "hovertemplate": "label %{y}<br>prediction %{x}<br>%{customdata} examples (%{z:.1%})<extra></extra>",
        "x": labels, "y": labels,
    }  # fmt: skip
    if small:
        heat |= {
            "text": [[f"{int(v):,}" for v in row] for row in matrix],
            "texttemplate": "%{text}",
            "textfont": {"size": 15, "color": "theme:ink"},
        }
    side = 60 * len(names) + 60 if small else 620
    layout = {
        "margin": {"l": 130, "r": 16, "t": 16, "b": 90},
        "xaxis": {"title": {"text": "prediction"}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": "label"}, "type": "category", "showgrid": False, "autorange": "reversed"},
    }
    right, total = int(np.trace(matrix)), int(matrix.sum())
    rows = tuple((name, *(f"{int(v):,}" for v in row)) for name, row in zip(names, matrix, strict=True))
    table = Table("Examples by label (rows) and prediction (columns)", ("label", *names), rows)
    return Figure(
        id=id, title="Confusion matrix", height=max(260, side), narrow=small, data=(heat,), layout=layout,
        caption=f"Rows are true labels, columns predictions; {right:,} of {total:,} examples lie on the diagonal.",
        description=f"Confusion matrix of {len(names)} classes: {right} of {total} examples are predicted correctly.",
        tables=(table,) if len(names) <= 24 else (),
    )  # fmt: skip


def axis_names(names: Sequence[str], *, limit: int) -> list[str]:
    """Shorten the names of an axis; those that would be alike get a number, as plotly merges categories of one name.

    Args:
        names: All of the axis, in its order.
        limit: Characters of each at most.

    Returns:
        The names, escaped; no two alike but where the names themselves are.
    """
    taken = {name for name in names if len(name) <= limit}
    short: dict[str, str] = {}
    for name in dict.fromkeys(names):
        numbered = (f"{name[: limit - len(end)]}{end}" for end in ("…", *(f"… {n}" for n in range(2, len(names) + 2))))
        short[name] = name if name in taken else next(found for found in numbered if found not in taken)
        taken.add(short[name])
    return [plain(short[name]) for name in names]
