"""The tables and the page of `study gates`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table, plain
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import threads_text, write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, text_table
from sortyard.studies.gates.arms import ARMS, CONTEXT, STATIC
from sortyard.studies.gates.latent_mode import NAME as LATENT_MODE
from sortyard.studies.gates.mixed_labels import NAME as MIXED_LABELS
from sortyard.studies.gates.mixed_text import NAME as MIXED_TEXT
from sortyard.studies.gates.summary import SEED_CLAIM, higher_is_better

Json = dict[str, Any]
_ABOUT = {
    LATENT_MODE: "Documents with a hidden mode, one of 8, that says which of 8 classes each of 32 words has; one token "
    "in ten names the mode. A layer of attention comes before the experts",
    MIXED_TEXT: "Masked language modelling on passages of several sources, mixed in every batch.",
    MIXED_LABELS: "One classifier for several labelled sets, over the union of their classes; the mean of the sets' "
    "accuracies.",
}


def gates_text(result: BenchResult) -> str:
    """Write the tables and the verdict as text."""
    budgets = result.summary.get("budgets", [])
    tables = [text_table(table) for budget in budgets for table in _tables(budget)]
    return "\n\n".join([*tables, *map(_sentence, budgets), *_warnings(result)]) or "nothing was trained"


def gates_page(result: BenchResult, *, folder: Path) -> Path:
    """Write the page: for each task and budget a picture of scores and gains, and its numbers."""
    budgets = result.summary["budgets"]
    arms = Section(
        id="arms",
        title="The arms",
        intro="Within a seed all arms see the same data in the same order and begin with the same weights wherever "
        f"they have them. Trained on {threads_text(result)}; one budget is one run of its own, whose learning rate "
        "falls to 0. Intervals are Student's t over the seeds' differences, each for itself: of twenty that should "
        "hold 0, one does not by chance. They speak of other seeds, not of other texts: what is held out of the "
        "sources is the same for all seeds.",
        tables=(Table("Who chooses the experts", ("arm", "what it is"), tuple(ARMS.items())),),
    )
    return write_page(
        result,
        folder=folder,
        title="What is a gate worth that reads the context?",
        verdict=" ".join([f"The claim: {SEED_CLAIM}.", *map(_sentence, budgets), *_warnings(result)]),
        sections=[*(_section(budget, about=_about(budget["task"], result.settings)) for budget in budgets), arms],
    )


def gates_figures(result: BenchResult) -> tuple[Figure, ...]:
    """The picture of every task and budget."""
    return tuple(figure for budget in result.summary["budgets"] for figure in _section(budget, about="").figures)


def score_text(task: str, value: float | None) -> str:
    """Write an accuracy in per cent, a loss in nats."""
    if value is None:
        return MISSING
    return f"{100 * value:.2f} %" if higher_is_better(task) else f"{value:.4f}"


def gain_text(task: str, value: float | None) -> str:
    """Write a gain with its sign: points of accuracy, or nats."""
    if value is None:
        return MISSING
    return f"{100 * value:+.2f}" if higher_is_better(task) else f"{value:+.4f}"


def _warnings(result: BenchResult) -> list[str]:
    count = len(result.summary.get("codes", ()))
    return [f"The runs are of {count} states of the code; --fresh trains them all anew."] if count > 1 else []


def _name(budget: Json) -> str:
    return f"{budget['task']}, {budget['steps']:,} steps"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def _unit(task: str) -> str:
    return "points" if higher_is_better(task) else "nats"


def _interval_text(task: str, gain: Json | None) -> str:
    if gain is None or gain["low"] is None:
        return MISSING
    return f"{gain_text(task, gain['low'])} to {gain_text(task, gain['high'])}"


def _sentence(budget: Json) -> str:
    task, gain = budget["task"], budget["arms"].get(STATIC, {}).get("gain")
    if gain is None:
        return f"{_name(budget)}: context and static gate were not both trained."
    before = budget["measured_before"]
    earlier = "" if before is None else f", measured before {gain_text(task, before)}"
    return (
        f"{_name(budget)}: over a static gate the context gate gains {gain_text(task, gain['mean'])} {_unit(task)} "
        f"(95 % interval {_interval_text(task, gain)}, {_seeds(gain['seeds'])}{earlier}): {budget['finding']}."
    )


def _tables(budget: Json) -> list[Table]:
    sources = list(dict.fromkeys(source for arm in budget["arms"].values() for source in arm["gain_by_source"]))
    return [_arm_table(budget), *([_source_table(budget, sources)] if sources else [])]


def _arm_table(budget: Json) -> Table:
    task = budget["task"]
    rows = []
    for name, arm in budget["arms"].items():
        gain = arm["gain"]
        rows.append(
            (
                name,
                score_text(task, arm["mean"]),
                score_text(task, arm["median"]),
                f"{score_text(task, arm['low'])} - {score_text(task, arm['high'])}",
                gain_text(task, None if gain is None else gain["mean"]),
                _interval_text(task, gain),
                _layers_text(arm["mutual_information"]),
                f"{arm['parameters']:,}",
                f"{arm['active_parameters']:,}",
                f"{arm['flops_per_step'] / 1e6:,.1f}",
                f"{arm['processor_seconds']:.1f}",
            )
        )
    header = (
        "arm", "mean", "median", "range over seeds", f"context gains, {_unit(task)}", "95 % interval",
        "expert tells, bits", "parameters", "active", "MFLOP a step", "seconds",
    )  # fmt: skip
    seeds = max(len(arm["scores"]) for arm in budget["arms"].values())
    score = "held-out accuracy" if higher_is_better(task) else "held-out loss in nats, lower is better"
    return Table(f"{_name(budget)}: {score}, {_seeds(seeds)}", header, tuple(rows))


def _source_table(budget: Json, sources: list[str]) -> Table:
    task = budget["task"]
    rows = tuple(
        (name, *(_gain_cell(task, arm["gain_by_source"].get(source)) for source in sources))
        for name, arm in budget["arms"].items()
        if name != CONTEXT
    )
    return Table(f"{_name(budget)}: what context gains by source, {_unit(task)}", ("arm", *sources), rows)


def _gain_cell(task: str, gain: Json | None) -> str:
    if gain is None:
        return MISSING
    interval = "" if gain["low"] is None else f" ({_interval_text(task, gain)})"
    return gain_text(task, gain["mean"]) + interval


def _layers_text(values: list[float] | None) -> str:
    return MISSING if values is None else " / ".join(f"{value:.2f}" for value in values)


def _about(task: str, settings: Json) -> str:
    if task != LATENT_MODE:
        return _ABOUT[task]
    learner = settings[LATENT_MODE]
    heads = learner["options"]["num_attention_heads"]
    return f"{_ABOUT[task]}; it has {heads} head{'s' * (heads > 1)}, and the learning rate is {learner['lr']:g}."


def _section(budget: Json, *, about: str) -> Section:
    name, task = _name(budget), budget["task"]
    stack, scale = Stack(), 100 if higher_is_better(task) else 1
    title = "Accuracy, %" if higher_is_better(task) else "Loss, nats (lower is better)"
    stack.add(title, height=300, traces=_score_traces(budget["arms"], scale=scale), axis={})
    gains = [_gain_trace(budget["arms"], scale=scale)]
    stack.add(f"What context gains over the arm, {_unit(task)}", height=240, traces=gains, axis={"zeroline": True})
    height = stack.finish(x_title="arm")
    order = [arm for arm in ARMS if arm in budget["arms"]]
    stack.layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": order}
    figure = Figure(
        id=f"{task}-{budget['steps']}",
        title=name,
        caption="Above, each point is a seed and each line the mean. Below, the mean over seeds of context's score "
        "less the arm's, turned so that up is better for context, with its 95 % interval.",
        description=f"{name}: scores of each arm by seed, and what the context gate gains over each.",
        height=height,
        data=tuple(stack.traces),
        layout=stack.layout,
        tables=tuple(_tables(budget)),
    )
    return Section(id=f"budget-{task}-{budget['steps']}", title=name, intro=about, figures=(figure,))


def _score_traces(arms: Mapping[str, Json], *, scale: float) -> list[Json]:
    points = [(name, scale * score, seed) for name, arm in arms.items() for seed, score in arm["scores"].items()]
    return [
        {
            "type": "scatter", "mode": "markers", "x": [name for name, _, _ in points],
            "y": [score for _, score, _ in points], "text": [f"seed {plain(seed)}" for _, _, seed in points],
            "marker": {"size": 8, "color": "theme:accent", "opacity": 0.7},
            "hovertemplate": "%{x}, %{text}: %{y:.4~g}<extra></extra>",
        },
        {
            "type": "scatter", "mode": "markers", "x": list(arms), "y": [scale * arm["mean"] for arm in arms.values()],
            "marker": {"size": 26, "symbol": "line-ew", "line": {"width": 2, "color": "theme:ink"}},
            "hovertemplate": "%{x}, mean: %{y:.4~g}<extra></extra>",
        },
    ]  # fmt: skip


def _gain_trace(arms: Mapping[str, Json], *, scale: float) -> Json:
    gains = {name: arm["gain"] for name, arm in arms.items() if arm["gain"] is not None}
    half = [None if gain["high"] is None else scale * (gain["high"] - gain["mean"]) for gain in gains.values()]
    return {
        "type": "bar", "x": list(gains), "y": [scale * gain["mean"] for gain in gains.values()],
        "marker": {"color": "theme:accent-fill"},
        "error_y": {"type": "data", "array": half, "thickness": 1.5, "width": 6, "color": "theme:ink"},
        "text": ["" if value is None else f" ± {value:.3g}" for value in half], "textposition": "none",
        "hovertemplate": "%{x}: %{y:+.4~g}%{text}<extra></extra>",
    }  # fmt: skip
