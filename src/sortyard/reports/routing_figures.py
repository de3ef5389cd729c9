"""What `sortyard eval --routing` found in a run: use of the experts by domain, and how early the routing settled."""

import math

from sortyard.reports.figures import MARGIN, MAX_TABLE_ROWS, Figure, Json, Stack, Table, axis_names, line, thin
from sortyard.reports.run_data import Record

MAX_LAYERS = 8
MAX_EXPERT_ROWS = 48
SHOWN_TOKENS = 6
MAX_NAME = 14


def use_figure(routing: Record, *, id: str) -> Figure | None:  # noqa: A002
    """Draw every expert's load on each text, layer by layer; None where routing was not evaluated."""
    if not routing:
        return None
    layers = thin(routing["layers"], limit=MAX_LAYERS)
    num_experts, names = routing["num_experts"], [domain["name"] for domain in routing["domains"]]
    stack = Stack()
    stack.layout["margin"] = MARGIN | {"l": 120}
    for layer in layers:
        rows = {"type": "category", "autorange": "reversed", "showgrid": False}
        height = max(30, 20 * len(names))
        title = f"Expert layer {layer['layer'] + 1}{_bits(layer['specialisation'])}"
        stack.add(title, height=height, traces=[_heat(layer, names=names)], axis=rows)
    height = stack.finish(x_title="expert", gap=36)
    worst = routing["layers"][routing["headline_layer"]]
    return Figure(
        id=id, title="Use of the experts, text by text", height=height, data=tuple(stack.traces),
        layout=stack.layout, caption=_use_caption(routing, num_left_out=len(routing["layers"]) - len(layers)),
        description=f"Heat maps of the load of {num_experts} experts on {len(names)} texts in {len(layers)} layers; "
        f"the least evenly used layer has a utilisation of {worst['utilisation']:.0%}.",
        tables=(token_table(routing),),
    )  # fmt: skip


def saturation_figure(routing: Record, *, id: str) -> Figure | None:  # noqa: A002
    """Draw how much of the final choice each checkpoint made; None where fewer than two were compared."""
    settled = routing.get("saturation") or {}
    points = settled.get("checkpoints") or []
    if len(points) < 2:
        return None
    steps, count = [point["step"] for point in points], len(routing["layers"])
    means = [sum(point["layers"]) / count for point in points]
    traces = [
        line(
            steps, [round(point["layers"][i], 4) for point in points], name=f"layer {i + 1}", color="accent", width=1,
            opacity=0.35,
        )
        for i in range(count)
    ]  # fmt: skip
    strong = line(
        steps, [round(mean, 4) for mean in means], name="mean", color="accent", width=2.5, mode="lines+markers"
    )
    chance = routing["num_experts_per_tok"] / routing["num_experts"]
    mark = line([steps[0], steps[-1]], [chance] * 2, name="independent choices", color="muted", width=1)
    mark["line"]["dash"] = "dot"
    stack = Stack()
    axis = {"range": [0, 1.05], "tickformat": ".0%"}
    stack.add("Chosen experts that are the final ones", height=170, traces=[*traces, mark, strong], axis=axis)
    shown = thin(points, limit=MAX_TABLE_ROWS)
    header = ("step", *(f"layer {i + 1}" for i in range(count)))
    rows = tuple((f"{point['step']:,}", *(f"{share:.1%}" for share in point["layers"])) for point in shown)
    height = stack.finish(x_title="optimizer steps of the checkpoint")
    return Figure(
        id=id, title="When the routing settled", height=height, data=tuple(stack.traces), layout=stack.layout,
        caption=f"Share of the experts chosen at a checkpoint that the final model chooses too, on the same "
        f"{settled['tokens']:,} tokens: router saturation. The strong line is the mean, the faint ones are the layers; "
        f"dotted is what independent choices would share, {chance:.1%}.",
        description=f"Lines over {len(points)} checkpoints; the mean goes from {means[0]:.0%} to {means[-1]:.0%}.",
        tables=(Table("Chosen experts that are the final ones", header, rows),),
    )  # fmt: skip


def layer_table(routing: Record) -> Table:
    """Lay the statistics out, a row a layer."""
    names = [domain["name"] for domain in routing["domains"]]
    several = len(names) > 1
    header = (
        "layer", "utilisation", "experts without tokens", "variation", "MaxVio", "redundancy",
        *(("specialisation, bits", *(f"utilisation on {name}" for name in names)) if several else ()),
    )  # fmt: skip
    rows = tuple(
        (
            str(layer["layer"] + 1), f"{layer['utilisation']:.3f}", str(layer["dead_experts"]),
            f"{layer['variation']:.3f}", f"{layer['max_violation']:.3f}", f"{layer['redundancy']:.3f}",
            *((f"{layer['specialisation']:.3f}",) if several else ()),
            *((f"{layer['domain_utilisation'][name]:.3f}" for name in names) if several else ()),
        )
        for layer in routing["layers"]
    )  # fmt: skip
    return Table(f"Use of the experts on {_texts(routing)}", header, rows)


def token_table(routing: Record) -> Table:
    """List the experts that are easiest to name, with the pieces of the vocabulary that mark them."""
    layers = thin(routing["layers"], limit=MAX_EXPERT_ROWS)
    limit = max(1, MAX_EXPERT_ROWS // len(layers))
    rows = []
    for layer in layers:
        ranked = sorted(range(len(layer["loads"])), key=lambda i: expert_strength(layer, i), reverse=True)
        for expert in ranked[:limit]:
            share = layer["loads"][expert] / sum(layer["loads"])
            pieces = layer["top_tokens"][expert][:SHOWN_TOKENS]
            shown = ", ".join(f"{piece['token']} x {piece['lift']:.1f}" for piece in pieces)
            rows.append((f"{layer['layer'] + 1}", str(expert), f"{share:.1%}", shown or "-"))
    total = sum(len(layer["loads"]) for layer in routing["layers"])
    part = "" if len(rows) == total else f" ({len(rows)} of {total} experts)"
    caption = f"Pieces of the vocabulary that mark an expert, and how much more often than elsewhere it gets them{part}"
    return Table(caption, ("layer", "expert", "load", "pieces"), tuple(rows))


def expert_strength(layer: Record, expert: int) -> float:
    """Say how much the strongest pieces tell an expert from the layer: sum of p(piece | expert) * ln(lift)."""
    weights: list[float] = [piece["copies"] * math.log(piece["lift"]) for piece in layer["top_tokens"][expert]]
    return sum(weights) / max(1, int(layer["loads"][expert]))


def _heat(layer: Record, *, names: list[str]) -> Json:
    loads = [layer["domain_loads"][name] for name in names]
    relative = [[round(load * len(row) / sum(row), 3) for load in row] for row in loads]
    return {
        "type": "heatmap", "y": axis_names(names, limit=MAX_NAME), "z": relative, "zmin": 0, "zmax": 2,
        "showscale": False, "ygap": 1,
        "colorscale": [[0, "theme:low"], [0.5, "theme:even"], [1, "theme:high"]],
        "hovertemplate": f"layer {layer['layer'] + 1}, expert %{{x}}<br>%{{y}}<br>%{{z:.2f}} x an even share"
        "<extra></extra>",
    }  # fmt: skip


def _use_caption(routing: Record, *, num_left_out: int) -> str:
    parts = [
        f"Counted on {_texts(routing)}. Neutral is an even share of a text's tokens; blue experts get less, amber ones "
        "more."
    ]
    if len(routing["domains"]) > 1:
        parts.append(
            "Bits: how much a token's expert tells about the text it is from, of at most "
            f"{routing['domain_entropy']:.2f}; 0 where all texts use the experts alike."
        )
    if num_left_out:
        parts.append(f"{num_left_out} more layers are not shown.")
    return " ".join([*parts, *(f"{note[:1].upper()}{note[1:]}." for note in routing["notes"])])


def _texts(routing: Record) -> str:
    masks = ", masked as in training" if routing["masked"] else ""
    listed = ", ".join(f"{domain['name']} ({domain['tokens']:,} tokens)" for domain in routing["domains"])
    return f"{listed}{masks}"


def _bits(specialisation: float | None) -> str:
    return "" if specialisation is None else f": {specialisation:.3f} bits"
