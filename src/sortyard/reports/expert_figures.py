"""Where the tokens went: expert load over time, and how much of the experts is used."""

import numpy as np
from numpy.typing import NDArray

from sortyard.evaluation.routing import utilisation
from sortyard.reports.figures import Figure, Json, Stack, Table, line
from sortyard.reports.run_data import Phase

MAX_COLUMNS = 120
MAX_LAYERS = 8
GOOD_UTILISATION = 0.85


def load_figure(phase: Phase, *, id: str) -> Figure | None:  # noqa: A002
    """Draw every expert's load over time, layer by layer, and the utilisation; None for a run without experts."""
    if not phase.routing_loads.size:
        return None
    steps, loads = _averaged(phase.routing_steps, phase.routing_loads)
    _, num_layers, num_experts = loads.shape
    shown = np.unique(np.linspace(0, num_layers - 1, min(num_layers, MAX_LAYERS)).round().astype(int))
    stack, used = Stack(), utilisation(loads)
    stack.add(
        "Utilisation, share of the experts",
        height=120,
        traces=_utilisation(steps, used),
        axis={"range": [0, 1.05], "tickformat": ".0%"},
    )
    for layer in shown:
        ticks = {"tickvals": _ticks(num_experts), "range": [num_experts - 0.5, -0.5], "showgrid": False}
        height = int(min(200, max(56, 11 * num_experts)))
        heat = [_heat(steps, loads[:, layer], layer=int(layer))]
        title = f"Expert layer {layer + 1}: load of expert 0 to {num_experts - 1}"
        stack.add(f"{title}; utilisation at the end {used[-1, layer]:.0%}", height=height, traces=heat, axis=ticks)
    height = stack.finish(x_title="optimizer steps", gap=38)
    last, left_out = used[-1], num_layers - len(shown)
    caption = (
        "Neutral is an even share of the tokens; blue experts get less, amber ones more. Utilisation is exp(entropy of "
        f"the loads) / {num_experts}: 100 % when all experts get the same. The strong line is the least used layer, "
        "the faint ones are the others; dotted at 85 %."
        + (f" {left_out} more layers are not shown." if left_out else "")
    )
    return Figure(
        id=id, title="Expert load", height=height, data=tuple(stack.traces), layout=stack.layout, caption=caption,
        description=f"Heat maps of the load of {num_experts} experts in {num_layers} layers; at the end the least used "
        f"layer has a utilisation of {last.min():.0%}.",
        tables=(_final_table(loads[-1], last),),
    )  # fmt: skip


def _averaged(steps: NDArray[np.int64], loads: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Average neighbouring records until at most `MAX_COLUMNS` are left; a column stands at its last step."""
    parts = np.array_split(np.arange(len(steps)), min(len(steps), MAX_COLUMNS))
    return steps[[part[-1] for part in parts]], np.stack([loads[part].mean(axis=0) for part in parts])


def _utilisation(steps: NDArray[np.int64], used: NDArray[np.float64]) -> list[Json]:
    x = steps.tolist()
    layers = [
        line(x, used[:, i].round(4).tolist(), name=f"layer {i + 1}", color="accent", width=1, opacity=0.35)
        for i in range(used.shape[1])
    ]
    mark = line([x[0], x[-1]], [GOOD_UTILISATION] * 2, name="85 %", color="muted", width=1)
    mark["line"]["dash"] = "dot"
    least = line(
        x, used.min(axis=1).round(4).tolist(), name="least used layer", color="accent", width=2.5, mode="lines+markers"
    )
    return [*layers, mark, least | {"marker": {"size": 4, "color": "theme:accent"}}]


def _heat(steps: NDArray[np.int64], loads: NDArray[np.float32], *, layer: int) -> Json:
    relative = (loads * loads.shape[-1]).T.round(3)  # [E, S]
    return {
        "type": "heatmap", "x": steps.tolist(), "z": relative.tolist(), "zmin": 0, "zmax": 2, "showscale": False,
        "colorscale": [[0, "theme:low"], [0.5, "theme:even"], [1, "theme:high"]],
        "hovertemplate": f"layer {layer + 1}, expert %{{y}}<br>step %{{x:,}}<br>"
        "%{z:.2f} x an even share<extra></extra>",
    }  # fmt: skip


def _ticks(num_experts: int) -> list[int]:
    return list(range(0, num_experts, max(1, num_experts // 4)))


def _final_table(loads: NDArray[np.float32], used: NDArray[np.float64]) -> Table:
    rows = tuple(
        (
            str(i + 1),
            f"{used[i]:.3f}",
            str(int((row == 0).sum())),
            f"{row.max() * row.size:.2f}",
            f"{row.min() * row.size:.2f}",
        )
        for i, row in enumerate(loads)
    )
    header = ("layer", "utilisation", "experts without tokens", "largest load / even", "smallest load / even")
    return Table("Loads at the end", header, rows)
