"""`study ablation`: a recipe beside itself with one thing changed, arm by arm."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sortyard.reports.figures import Figure, Stack, Table
from sortyard.reports.sections import Section
from sortyard.studies.bench.page import write_page
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.tables import MISSING, number_text, text_table
from sortyard.studies.gates.pairing import paired_gain
from sortyard.studies.trained.arms import BASE, ablation_arms
from sortyard.studies.trained.curves import processor_seconds
from sortyard.studies.trained.examples import examples_table
from sortyard.studies.trained.study import Say, TrainedPlan, TrainedStudy, curves_of, run_trained, scores_of

Json = dict[str, Any]
WHAT = (
    "held-out loss of a small model and of the same model with one thing changed, after equal steps on equal text in "
    "equal order; what each change costs is paired over seeds, with 95 % intervals"
)


def run_ablation(
    plan: TrainedPlan, *, places: Sequence[Path], folder: Path, work: Path, say: Say
) -> tuple[BenchResult, str]:
    """Train the recipe and its changes, as far as they are missing, and compare what is there.

    Args:
        plan: Recipe, text and seeds.
        places: Files that hold only what they change, or folders of them; empty = the shipped ones.
        folder: An existing folder for ablation.json and ablation.html.
        work: Folder of the runs.
        say: Takes a line of progress.

    Returns:
        The result and its table as text.

    Raises:
        InputError: a file is no change of the recipe, or text, recipe or folder cannot be used.
    """
    arms = ablation_arms(plan.recipe, source=plan.loaded.source, places=places)
    study = TrainedStudy(
        name="ablation", what=WHAT, arms=arms, summarise=summarise, write_page=ablation_page, write_text=ablation_text
    )
    return run_trained(study, plan, folder=folder, work=work, say=say)


def summarise(cells: Mapping[str, Json]) -> Json:
    """Each arm's sizes and losses, and what its change costs against the base.

    Args:
        cells: The study's cells.

    Returns:
        By arm: its figures, "cost" in nats and "cost_on_task" in shares of the score; positive means that the change
        makes it worse.
    """
    base, base_scores = curves_of(cells, BASE), scores_of(cells, BASE)
    base_losses = {seed: curve.losses[-1] for seed, curve in base.items()}
    found: Json = {}
    for arm in dict.fromkeys(cell["arm"] for cell in cells.values()):
        curves, scores = curves_of(cells, arm), scores_of(cells, arm)
        losses = {seed: curve.losses[-1] for seed, curve in curves.items()}
        some = next(iter(curves.values()))
        found[arm] = {
            "losses": losses,
            "scores": scores,
            "parameters": some.parameters,
            "active_parameters": some.active_parameters,
            "sparsity": statistics.fmean(curve.sparsity for curve in curves.values()),
            "processor_seconds": processor_seconds(curves.values()),
            "cost": None if arm == BASE else _record(base_losses, losses, higher_is_better=False),
            "cost_on_task": None if arm == BASE else _record(base_scores, scores, higher_is_better=True),
        }
    return {"arms": found}


def _record(base: Mapping[str, float], other: Mapping[str, float], *, higher_is_better: bool) -> Json | None:
    gain = paired_gain(base, other, higher_is_better=higher_is_better)
    return None if gain is None else gain.record()


def ablation_text(result: BenchResult) -> str:
    """Write the table as text."""
    return "\n\n".join(map(text_table, _tables(result))) if result.cells else "nothing was trained"


def ablation_page(result: BenchResult, folder: Path) -> Path:
    """Write ablation.html: what each change costs, with its interval, and its numbers."""
    arms = Table("The arms", ("arm", "what is changed"), tuple(result.settings["arms"].items()), has_sentences=True)
    worse = [name for name, arm in result.summary["arms"].items() if arm["cost"] and (arm["cost"]["low"] or 0) > 0]
    verdict = f"Proven to cost something: {', '.join(worse)}." if worse else "No change is proven to cost anything."
    return write_page(
        result, folder=folder, title="What each part is worth", verdict=verdict,
        sections=[
            Section(
                id="cost", title="What each change costs", figures=ablation_figures(result),
                tables=_tables(result)[1:],
            ),
            Section(id="arms", title="The arms", tables=(arms,)),
        ],
    )  # fmt: skip


def ablation_figures(result: BenchResult) -> tuple[Figure, ...]:
    """A bar a change: how much the held-out loss rises, with its interval over seeds."""
    costs = {name: arm["cost"] for name, arm in result.summary["arms"].items() if arm["cost"] is not None}
    half = [0.0 if cost["high"] is None else cost["high"] - cost["mean"] for cost in costs.values()]
    trace = {
        "type": "bar", "x": list(costs), "y": [cost["mean"] for cost in costs.values()],
        "marker": {"color": "theme:accent-fill"},
        "error_y": {"type": "data", "array": half, "thickness": 1.5, "width": 6, "color": "theme:ink"},
        "hovertemplate": "%{x}: %{y:+.4f} nats<extra></extra>",
    }  # fmt: skip
    stack = Stack()
    stack.add("Rise of the held-out loss, nats", height=320, traces=[trace], axis={"zeroline": True})
    height = stack.finish(x_title="change")
    stack.layout["xaxis"] |= {"type": "category", "tickangle": -35}
    stack.layout["margin"] = stack.layout["margin"] | {"b": 130}
    figure = Figure(
        id="ablation-cost", title="Rise of the loss", height=height + 82, data=tuple(stack.traces),
        layout=stack.layout, caption="Paired over seeds, with 95 % intervals; above 0, the change makes it worse.",
        description="A bar for each change: how much the held-out loss rises.", tables=(_table(result),),
    )  # fmt: skip
    return (figure,)


def _tables(result: BenchResult) -> tuple[Table, ...]:
    resampled = result.summary["on_examples"]
    return (_table(result), *([examples_table(resampled, first=BASE)] if resampled else []))


def _table(result: BenchResult) -> Table:
    rows = tuple(_row(name, arm) for name, arm in result.summary["arms"].items())
    header = (
        "arm", "held-out loss", "rise, nats", "95 % interval", "task", "loss on task, points", "95 % interval ",
        "sparsity", "parameters", "active", "processor s",
    )  # fmt: skip
    seeds = max(len(arm["losses"]) for arm in result.summary["arms"].values())
    return Table(f"What each change costs, {seeds} seed{'s' * (seeds > 1)}", header, rows)


def _row(name: str, arm: Json) -> tuple[str, ...]:
    scores = arm["scores"]
    return (
        name,
        f"{statistics.fmean(arm['losses'].values()):.4f}",
        *_cost(arm["cost"], scale=1, digits=4),
        f"{100 * statistics.median(scores.values()):.1f} %" if scores else MISSING,
        *_cost(arm["cost_on_task"], scale=100, digits=2),
        f"{arm['sparsity']:.0%}",
        f"{arm['parameters']:,}",
        f"{arm['active_parameters']:,}",
        number_text(arm["processor_seconds"], digits=0),
    )


def _cost(cost: Json | None, *, scale: float, digits: int) -> tuple[str, str]:
    if cost is None:
        return MISSING, MISSING
    mean = f"{scale * cost['mean']:+.{digits}f}"
    if cost["low"] is None:
        return mean, "one seed"
    return mean, f"{scale * cost['low']:+.{digits}f} to {scale * cost['high']:+.{digits}f}"
