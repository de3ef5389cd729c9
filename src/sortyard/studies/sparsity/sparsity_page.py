"""The tables and the page of `study sparsity`."""

from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table, plain
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import threads_text, write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import length_text, text_table
from sortyard.studies.sparsity.cores import LOCAL, POSITIONS, RANDOM, ROUNDS, SELECTIONS, TREE
from sortyard.studies.sparsity.knee import TOLERANCE, knee_text
from sortyard.studies.sparsity.plan import ADAPTED, AS_IS, TASK
from sortyard.studies.sparsity.summary import AIM, SEED_CLAIM

Json = dict[str, Any]
_LOOKS = {
    TREE: ("accent", "solid"), ROUNDS: ("amber", "solid"), RANDOM: ("muted", "dash"), LOCAL: ("ochre", "dash"),
    POSITIONS: ("low", "dot"),
}  # fmt: skip
_SHORT = {AS_IS: "without fine-tuning", ADAPTED: "fine-tuned on text", TASK: "fine-tuned on the task"}
_AIMED_AT = 0.95
_SHOWN = 10.0  # per cent of fall: far above the knee, and little beside what random keys lose


def sparsity_text(result: BenchResult) -> str:
    """Write the knees, the tables and the verdict as text."""
    panels = result.summary.get("panels", [])
    if not panels:
        return "nothing was measured"
    tables = [knee_table(result), *(table for panel in panels for table in _tables(panel))]
    return "\n\n".join([*map(text_table, tables), verdict(result)])


def sparsity_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: the knees, and for each length a picture of the fall by sparsity."""
    panels = result.summary.get("panels", [])
    lengths = sorted({panel["length"] for panel in panels})
    first = Section(
        id="knees",
        title="The knees",
        intro=f"The sparsity at which a score has fallen by {100 * TOLERANCE:g} % of dense attention's (loss up, "
        "accuracy down), on the straight line between the points measured. Sparsity is measured on text, a summary "
        f"counts as one key. The seed's claim: {SEED_CLAIM}. The aim: {AIM}.",
        tables=(knee_table(result),),
    )
    about = Section(
        id="selections",
        title="The selections",
        intro="Weights, data, order and seeds are the same for all; nothing but the attention differs. Measured on "
        f"{threads_text(result)} for each process.",
        tables=(Table("What was compared", ("selection", "what it is"), tuple(SELECTIONS.items())),),
    )
    return write_page(
        result,
        folder=folder,
        title="How sparse can attention be?",
        verdict=verdict(result),
        sections=[first, *(_section(result, length) for length in lengths), about],
    )


def knee_table(result: BenchResult) -> Table:
    """The knee of every selection, by measure and length."""
    rows = []
    for panel in result.summary.get("panels", []):
        knees = panel["selections"]
        cells = (_knee_cell(knees.get(name)) for name in SELECTIONS)
        rows.append((f"{length_text(panel['length'])} tokens, {_SHORT[panel['measure']]}", *cells))
    return Table("The knee: 1 % relative fall, mean over seeds (range)", ("measure", *SELECTIONS), tuple(rows))


def verdict(result: BenchResult) -> str:
    """What the tree reaches beside the claims, in a few sentences."""
    told = {panel["length"]: panel for panel in result.summary.get("panels", []) if _is_told(panel)}
    return " ".join([f"The claim: {SEED_CLAIM}.", *map(_sentence, told.values())])


def _is_told(panel: Json) -> bool:
    """Of each length the loss after fine-tuning, if it is there; it comes after the loss before."""
    return panel["measure"] != TASK and TREE in panel["selections"]


def _sentence(panel: Json) -> str:
    tree, where = panel["selections"][TREE], f"{length_text(panel['length'])} tokens, {_SHORT[panel['measure']]}"
    nearest = min(tree["points"], key=lambda point: abs(float(point["sparsity"]) - _AIMED_AT))
    return (
        f"{where}: the tree {_knee_words(tree['knee'])}; {100 * nearest['sparsity']:.1f} % sparse it is "
        f"{_fall_words(nearest['fall'])} dense attention."
    )


def _knee_words(knee: Json) -> str:
    share = f"{100 * knee['sparsity']:.1f} %"
    return {
        "at": f"has its knee at {share}",
        "never": f"has no knee up to {share}",
        "at once": f"is below already at {share}, its first point",
    }[knee["where"]]


def _fall_words(fall: float) -> str:
    return f"{100 * abs(fall):.2f} % {'worse' if fall > 0 else 'better'} than"


def _knee_cell(selection: Json | None) -> str:
    if selection is None:
        return "-"
    text = knee_text(selection["knee"])
    each = list(dict.fromkeys(knee_text(knee) for knee in selection["knee_by_seed"].values()))
    return f"{text} ({'; '.join(each)})" if len(each) > 1 else text


def _tables(panel: Json) -> list[Table]:
    is_task = panel["measure"] == TASK
    rows = tuple(
        (
            name, f"{100 * point['asked']:g} %", f"{100 * point['sparsity']:.1f} %",
            f"{100 * point['score']:.2f} %" if is_task else f"{point['score']:.4f}", f"{100 * point['fall']:+.2f} %",
            f"{100 * point['low']:+.2f} to {100 * point['high']:+.2f} %", str(len(point["fall_by_seed"])),
        )
        for name, selection in panel["selections"].items()
        for point in selection["points"]
    )  # fmt: skip
    dense = panel["dense"]["mean"]
    caption = f"{length_text(panel['length'])} tokens: {panel['what']}; dense attention " + (
        f"{100 * dense:.2f} %" if is_task else f"{dense:.4f} nats"
    )
    score = "accuracy" if is_task else "loss, nats"
    header = ("selection", "asked", "sparsity", score, "worse than dense", "range over seeds", "seeds")
    return [Table(caption, header, rows)]


def sparsity_figures(result: BenchResult) -> tuple[Figure, ...]:
    """The picture of every length: the fall by sparsity, a line a selection."""
    lengths = sorted({panel["length"] for panel in result.summary.get("panels", [])})
    return tuple(figure for length in lengths for figure in _section(result, length).figures)


def _section(result: BenchResult, length: int) -> Section:
    panels = [panel for panel in result.summary["panels"] if panel["length"] == length]
    stack, named = Stack(), set[str]()
    for panel in panels:
        traces = [_trace(name, found, named=name not in named) for name, found in panel["selections"].items()]
        named |= set(panel["selections"])
        axis = {"ticksuffix": " %", "zeroline": True, "tickformat": "~g", **_range(panel)}
        what = "Fall of the accuracy" if panel["measure"] == TASK else "Rise of the loss"
        stack.add(f"{what}, {_SHORT[panel['measure']]}{_unseen(panel)}", height=280, traces=traces, axis=axis)
    height = stack.finish(x_title="pairs left out, % (measured)")
    stack.mark(100 * _AIMED_AT, look={"color": "theme:muted", "width": 1, "dash": "dot"})
    legend = {"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top", "groupclick": "togglegroup"}
    stack.layout |= {"showlegend": True, "legend": legend}
    figure = Figure(
        id=f"sparsity-{length}",
        title=f"{length_text(length)} tokens",
        caption="Lower is better; 0 is dense attention with the same data and seeds. Points are means over seeds, bars "
        f"their range; what lies above {_SHOWN:g} % is cut off, the tables have it. The dotted line is the aim of "
        "95 %. A name in the legend hides its curve.",
        description=f"Relative fall of the score by measured sparsity at {length} tokens, a line a selection.",
        height=height,
        data=tuple(stack.traces),
        layout=stack.layout,
        tables=tuple(table for panel in panels for table in _tables(panel)),
    )
    return Section(id=f"length-{length}", title=f"{length_text(length)} tokens", figures=(figure,))


def _unseen(panel: Json) -> str:
    """Name the selections of which no point can be seen."""
    least = {name: min(100 * point["fall"] for point in found["points"]) for name, found in panel["selections"].items()}
    names = ", ".join(name for name, fall in least.items() if fall > _SHOWN)
    return f" ({names}: nowhere below {_SHOWN:g} %)" if names else ""


def _range(panel: Json) -> Json:
    """A vertical axis on which falls of one per cent can be seen."""
    falls = [100 * float(point["fall"]) for found in panel["selections"].values() for point in found["points"]]
    if max(falls) <= _SHOWN:
        return {}
    return {"range": [min(0.0, *falls) - 0.05 * _SHOWN, _SHOWN]}


def _trace(name: str, selection: Json, *, named: bool) -> Json:
    colour, dash = _LOOKS[name]
    points = sorted(selection["points"], key=lambda point: float(point["sparsity"]))
    return {
        "type": "scatter", "mode": "lines+markers", "name": plain(name), "legendgroup": name, "showlegend": named,
        "x": [100 * point["sparsity"] for point in points], "y": [100 * point["fall"] for point in points],
        "line": {"color": f"theme:{colour}", "width": 2, "dash": dash}, "marker": {"size": 5},
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 2,
            "array": [100 * (point["high"] - point["fall"]) for point in points],
            "arrayminus": [100 * (point["fall"] - point["low"]) for point in points],
        },
        "hovertemplate": f"{plain(name)}: %{{y:.2f}} % at %{{x:.1f}} % sparse<extra></extra>",
    }  # fmt: skip
