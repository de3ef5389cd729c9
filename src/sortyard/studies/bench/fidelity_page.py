"""The tables and the page of `bench fidelity`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table, plain
from sortyard.reports.sections import Section
from sortyard.studies.bench.fidelity_selections import FAMILIES, NOTES, POINTS, TREE
from sortyard.studies.bench.page import write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import length_text, text_table

Json = dict[str, Any]
# The budgets that the project's goals name: 94 % sparse at 2,048 tokens, 60 % at 512.
BUDGETS = {512: 210, 2048: 130}
_LOOKS = {
    TREE: ("accent", "solid"), "tree-by-keys": ("accent", "dot"), "tree-narrow": ("green", "solid"),
    "tree-fine": ("violet", "solid"),
    "position-tree": ("low", "solid"), "oracle": ("ink", "dash"), "random": ("muted", "dash"),
    "local": ("ochre", "dash"),
    "rounds-gray": ("amber", "solid"), "rounds-cross_polytope": ("bad", "solid"), "rounds-e2lsh": ("bad", "dot"),
    "rounds-kmeans": ("bad", "dash"), "rounds-random": ("bad", "dashdot"), "rounds-sign_sum": ("bad", "longdash"),
}  # fmt: skip
_KEY_TICKS = [2**power for power in range(4, 13)]
_VALUE_TICKS = [digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 5)]


def summarise(cells: Mapping[str, Json]) -> Json:
    """Each selection's lowest error within the budget of each length that has one."""
    found: Json = {}
    for length, budget in BUDGETS.items():
        within = [cell for cell in cells.values() if cell["length"] == length and cell["keys"] <= budget]
        best: dict[str, Json] = {}
        for cell in sorted(within, key=lambda cell: float(cell["error"])):
            best.setdefault(cell["selection"], {name: cell[name] for name in ("point", "keys", "error", "cosine")})
        if best:
            found[str(length)] = {"budget": budget, "best": best}
    return found


def fidelity_text(result: BenchResult) -> str:
    """Write every table of a result as text."""
    return "\n\n".join(text_table(_table(result, length)) for length in _lengths(result))


def fidelity_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: for each length a picture of error and token cosine by keys a query, and its numbers."""
    sections = [_section(result, length) for length in _lengths(result)]
    about = Section(
        id="selections",
        title="The selections",
        intro="Rounds and the controls are given as many keys a query as the default tree has; rounds that meet the "
        "same pairs use fewer. The first and the last token are always exact. Keys a query and the mass kept are means "
        "over some heads of every layer of the first passage.",
        tables=(Table("What was compared", ("selection", "what it is"), tuple(NOTES.items())),),
    )
    return write_page(
        result,
        folder=folder,
        title="Bucket attention, fidelity by keys a query",
        verdict=_verdict(result),
        sections=[*sections, about],
    )


def _lengths(result: BenchResult) -> list[int]:
    return sorted({int(cell["length"]) for cell in result.cells.values()})


def _cells(result: BenchResult, length: int) -> list[Json]:
    found = [cell for cell in result.cells.values() if cell["length"] == length]
    return sorted(found, key=lambda cell: (FAMILIES.index(cell["selection"]), POINTS.index(cell["point"])))


def _title(length: int) -> str:
    return f"{length_text(length)} tokens"


def _table(result: BenchResult, length: int) -> Table:
    rows = tuple(
        (
            cell["selection"], cell["point"], f"{cell['keys']:.0f}", f"{1 - cell['keys'] / length:.1%}",
            f"{cell['error']:.3f}", _range(cell["error_by_passage"], digits=3),
            f"{cell['cosine']:.4f}", _range(cell["cosine_by_passage"], digits=4), f"{cell['mass']:.3f}",
        )
        for cell in _cells(result, length)
    )  # fmt: skip
    header = ("selection", "budget", "keys a query", "sparse", "error", "range", "token cosine", "range", "mass kept")
    settings = result.settings
    stretched = ", positions stretched" if length > settings["stretched_from"] else ""
    caption = f"{_title(length)}{stretched}: {settings['model']}, {settings['passages']} passages of {settings['text']}"
    return Table(caption, header, rows)


def _range(values: list[float], *, digits: int) -> str:
    return f"{min(values):.{digits}f} - {max(values):.{digits}f}"


def _verdict(result: BenchResult) -> str:
    sentences = []
    for length, found in result.summary.items():
        trees = [(record["error"], name, record) for name, record in found["best"].items() if name.startswith(TREE)]
        if trees:
            error, name, record = min(trees, key=lambda tree: float(tree[0]))
            sentences.append(
                f"Within {found['budget']} keys a query at {length_text(int(length))} tokens, {name} errs by "
                f"{error:.3f} and keeps a token cosine of {record['cosine']:.3f}."
            )
    return " ".join(sentences) or "Fidelity of each selection by keys a query."


def _section(result: BenchResult, length: int) -> Section:
    cells, stack = _cells(result, length), Stack()
    errors = _traces(cells, "error", named=True)
    losses = _traces([cell | {"loss": max(1e-6, 1 - cell["cosine"])} for cell in cells], "loss", named=False)
    axis = {"type": "log", "tickvals": _VALUE_TICKS, "ticktext": [f"{value:g}" for value in _VALUE_TICKS]}
    stack.add("Output error of a layer", height=340, traces=errors, axis=axis)
    stack.add("1 - token cosine after all layers", height=340, traces=losses, axis=axis)
    height = stack.finish(x_title="keys a query")
    stack.layout["xaxis"] |= {"type": "log", "tickvals": _KEY_TICKS, "ticktext": [f"{keys:,}" for keys in _KEY_TICKS]}
    legend = {"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top", "groupclick": "togglegroup"}
    stack.layout |= {"showlegend": True, "legend": legend}
    figure = Figure(
        id=f"fidelity-{length}",
        title=_title(length),
        caption=f"{_title(length)}; lower is better, all axes are logarithmic; summaries count as keys, bars are the "
        "range over passages.",
        description=f"Output error and loss of token cosine by keys a query at {length} tokens, a line a selection.",
        height=height,
        data=tuple(stack.traces),
        layout=stack.layout,
        tables=(_table(result, length),),
    )
    return Section(id=f"length-{length}", title=_title(length), figures=(figure,))


def _traces(cells: list[Json], value: str, *, named: bool) -> list[Json]:
    names = dict.fromkeys(cell["selection"] for cell in cells)
    return [_trace(name, [cell for cell in cells if cell["selection"] == name], value, named=named) for name in names]


def _trace(name: str, cells: list[Json], value: str, *, named: bool) -> Json:
    colour, dash = _LOOKS[name]
    points = sorted(cells, key=lambda cell: float(cell["keys"]))
    trace: Json = {
        "type": "scatter", "mode": "lines+markers", "name": plain(name), "legendgroup": name, "showlegend": named,
        "x": [cell["keys"] for cell in points], "y": [cell[value] for cell in points],
        "line": {"color": f"theme:{colour}", "width": 2, "dash": dash}, "marker": {"size": 5},
        "hovertemplate": f"{plain(name)}: %{{y:.3~g}} at %{{x:.0f}} keys<extra></extra>",
    }  # fmt: skip
    if value == "error":
        trace["error_y"] = {
            "type": "data", "symmetric": False, "thickness": 1, "width": 2,
            "array": [max(cell["error_by_passage"]) - cell["error"] for cell in points],
            "arrayminus": [cell["error"] - min(cell["error_by_passage"]) for cell in points],
        }  # fmt: skip
    return trace
