"""What one attention head reads: dense attention's mass, and the pairs that buckets compute exactly or summarise."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sortyard.reports.figures import Figure, Json, Table, panel_title, plain

NOT_COMPUTED, EXACT, SUMMARISED = 0, 1, 2
KINDS = ((NOT_COMPUTED, "not computed", "ink"), (EXACT, "exact", "accent"), (SUMMARISED, "summarised", "amber"))


def bucket_figure(buckets: dict[str, Any], *, id: str) -> Figure | None:  # noqa: A002
    """Draw the token x token picture of an inspection's `buckets`; None where a model has no bucket layers."""
    picture = buckets.get("picture")
    if not picture:
        return None
    shade, kind = np.sqrt(np.asarray(picture["mass"], dtype=float)), np.asarray(picture["kind"])
    limit = float(np.quantile(shade, 0.99)) or 1.0
    traces = [_layer(shade, limit=limit, color="ink", name="dense attention", axis="")]
    for value, name, color in KINDS:
        if (kind == value).any():
            traces.append(_layer(np.where(kind == value, shade, np.nan), limit=limit, color=color, name=name, axis="2"))
    shares = {value: float((kind == value).mean()) for value, _, _ in KINDS}
    tokens = picture["tokens"]
    return Figure(
        id=id, title="What a head reads", height=560, data=tuple(traces), layout=_layout(tokens),
        caption=_caption(picture, shares),
        description=f"Two {len(tokens)} by {len(tokens)} token squares of layer {picture['layer'] + 1}, head "
        f"{picture['head'] + 1}: the mass of dense attention, and the same with {shares[EXACT]:.0%} of the pairs exact "
        f"and {shares[SUMMARISED]:.0%} summarised.",
        tables=(_table(buckets),),
    )  # fmt: skip


def _layer(shade: NDArray[np.float64], *, limit: float, color: str, name: str, axis: str) -> Json:
    values = [[None if np.isnan(value) else round(float(value), 2) for value in row] for row in shade / limit]
    return {
        "type": "heatmap", "z": values, "zmin": 0, "zmax": 1, "showscale": False, "name": name, "hoverongaps": False,
        "colorscale": [[0, f"theme:{color}-faint"], [1, f"theme:{color}"]],
        "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        "hovertemplate": f"{name}<br>query %{{y}}, key %{{x}}<extra></extra>",
    }  # fmt: skip


def _layout(tokens: list[str]) -> Json:
    every = max(1, len(tokens) // 16)
    places = list(range(0, len(tokens), every))
    labels = [plain(tokens[i][:12]) for i in places]
    axis = {"tickvals": places, "ticktext": labels, "showgrid": False, "zeroline": False, "tickfont": {"size": 10}}
    across = axis | {"tickangle": -60}
    down = axis | {"autorange": "reversed"}
    square = {"constrain": "domain", "constraintoward": "top"}
    return {
        "margin": {"l": 92, "r": 12, "t": 36, "b": 92},
        "xaxis": across | {"domain": [0, 0.485], "anchor": "y", "constrain": "domain"},
        "yaxis": down | square | {"anchor": "x", "scaleanchor": "x"},
        "xaxis2": across | {"domain": [0.515, 1], "anchor": "y2", "constrain": "domain"},
        "yaxis2": down | square | {"anchor": "x2", "scaleanchor": "x2", "showticklabels": False},
        "annotations": [panel_title("Dense attention", y=1), panel_title("Bucket attention", y=1, x=0.515)],
    }  # fmt: skip


def _caption(picture: dict[str, Any], shares: dict[int, float]) -> str:
    what = [
        f"{shares[EXACT]:.0%} of the pairs are exact (teal)",
        f"{shares[SUMMARISED]:.0%} stand behind a summary (amber)",
    ]
    if shares[NOT_COMPUTED] > 0:
        what.append(f"{shares[NOT_COMPUTED]:.0%} are left out (grey)")
    return (
        f"Layer {picture['layer'] + 1}, head {picture['head'] + 1} (the head with the median mass on exact keys), "
        f"{len(picture['tokens'])} tokens of a real text; queries down, keys across. The stronger the colour, the more "
        f"mass dense attention puts there. {', '.join(what)}. Exact keys carry {picture['mass_kept']:.1%} of this "
        f"head's dense mass. The layer's output differs from dense attention by {picture['output_error']:.1%} at a "
        f"sparsity of {picture['sparsity']:.1%}."
    )


def _table(buckets: dict[str, Any]) -> Table:
    rows = tuple(
        (str(row["layer"] + 1), f"{row['mass_kept']:.3f}", f"{row['output_error']:.3f}", f"{row['sparsity']:.3f}")
        for row in buckets["layers"]
    )
    header = ("layer", "dense mass on exact keys", "output error", "sparsity")
    return Table(f"Bucket layers on this text ({buckets['num_tokens']} tokens, means over heads)", header, rows)
