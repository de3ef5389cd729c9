"""The sections of a report, each present only where the run has its data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sortyard.reports.bucket_figure import bucket_figure
from sortyard.reports.curves import curves_figure
from sortyard.reports.expert_figures import load_figure
from sortyard.reports.figures import Figure, Table, confusion_figure
from sortyard.reports.routing_figures import layer_table, saturation_figure, use_figure
from sortyard.reports.run_data import Evaluation, Phase, Record
from sortyard.reports.wording import metric_name, metric_value

NUM_SAMPLES = 6
MAX_SAMPLE_CHARACTERS = 400
GOLDEN_ANGLE = 137.508  # degrees: neighbouring experts get hues far apart, however many there are


@dataclass(frozen=True)
class Samples:
    """Some predictions: a title and rows with text, label, prediction, score and mark."""

    title: str
    score_name: str
    rows: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Token:
    """A token, its experts and the colour of the first of them."""

    text: str
    experts: str
    hue: int


@dataclass(frozen=True)
class Routed:
    """Sample texts in one layer, token by token."""

    title: str
    intro: str
    samples: tuple[tuple[Token, ...], ...]


@dataclass(frozen=True)
class Block:
    """Preformatted text that opens on demand."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One heading of the page and what stands beneath it."""

    id: str
    title: str
    intro: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    routed: tuple[Routed, ...] = ()
    samples: tuple[Samples, ...] = ()
    blocks: tuple[Block, ...] = ()


def evaluation_section(evaluation: Evaluation, *, settings: Record, id: str) -> Section | None:  # noqa: A002
    """Scores with interval and baselines, confusion matrix and sample predictions of one evaluated split."""
    result = evaluation.result
    if "metrics" not in result:
        return None
    confusion = result.get("confusion")
    figures = (confusion_figure(confusion, names=result["label_names"], id=f"{id}-confusion"),) if confusion else ()
    return Section(
        id=id,
        title=_evaluation_title(evaluation.name, settings=settings),
        intro=_interval_sentence(result),
        tables=(_scores_table(result),),
        figures=figures,
        samples=tuple(_samples(evaluation.predictions)),
    )


def training_section(phase: Phase, *, id: str, title: str) -> Section | None:  # noqa: A002
    """Curves over the steps."""
    figure = curves_figure(phase, id=f"{id}-curves")
    return Section(id=id, title=title, figures=(figure,)) if figure else None


def experts_section(phase: Phase, *, id: str, title: str) -> Section | None:  # noqa: A002
    """Load over time, use on texts as far as it was evaluated, and sample texts with their experts."""
    figures = (
        load_figure(phase, id=f"{id}-load"),
        use_figure(phase.routing, id=f"{id}-use"),
        saturation_figure(phase.routing, id=f"{id}-saturation"),
    )
    drawn = tuple(figure for figure in figures if figure is not None)
    routed = tuple(_routed(phase.inspection.get("routing") or {}))
    tables = (layer_table(phase.routing),) if phase.routing else ()
    return Section(id=id, title=title, tables=tables, figures=drawn, routed=routed) if drawn or routed else None


def attention_section(phase: Phase, *, id: str, title: str) -> Section | None:  # noqa: A002
    """What a head reads."""
    figure = bucket_figure(phase.inspection.get("buckets") or {}, id=f"{id}-buckets")
    return Section(id=id, title=title, figures=(figure,)) if figure else None


def environment_section(phases: Sequence[Phase]) -> Section | None:
    """Environment and resolved recipe, folded away."""
    blocks: list[Block] = []
    for phase in phases:
        name = f" ({phase.path.name})" if len(phases) > 1 else ""
        if phase.environment:
            blocks.append(Block(f"Environment{name}", "\n".join(_flat(phase.environment))))
        if phase.recipe:
            blocks.append(Block(f"Resolved recipe{name}", phase.recipe.rstrip()))
    intro = "Everything needed to repeat the run: versions, machine, seed, and every setting with its value."
    return (
        Section(id="environment", title="Environment and recipe", intro=intro, blocks=tuple(blocks)) if blocks else None
    )


def _evaluation_title(name: str, *, settings: Record) -> str:
    """Names the task; a custom one has no name that says anything, so its file's stands in."""
    if name == "custom-again":
        return "Results, scored again"  # maybe on another file, whose name is not recorded
    if name != "custom":
        return f"Results on {name}"
    task = (settings.get("finetune") or {}).get("task") or {}
    source = task.get("dev") or task.get("data")
    return f"Results on {Path(source).name}" if source else "Results"


def _interval_sentence(result: Record) -> str:
    main, interval = result["main_metric"], result.get("interval")
    value = metric_value(result["metrics"][main], metric=main)
    sentence = f"{metric_name(main).capitalize()} {value} on {result['num_examples']:,} examples"
    if not interval:
        return sentence + "."
    low, high = (metric_value(interval[end], metric=main) for end in ("low", "high"))
    return f"{sentence}; {100 * interval['level']:.0f} % interval {low} to {high} ({interval['method']})."


def _scores_table(result: Record) -> Table:
    baselines = result.get("baselines") or []
    rows = tuple(
        (
            metric_name(name),
            metric_value(value, metric=name),
            *(metric_value(other["metrics"][name], metric=name) for other in baselines),
        )
        for name, value in result["metrics"].items()
    )
    return Table("Scores", ("metric", "model", *(other["name"] for other in baselines)), rows)


def _samples(predictions: Sequence[Record]) -> Iterable[Samples]:
    """The wrong answers the model was surest of and right ones from all over; a regression's worst and best."""
    if not predictions:
        return
    if "correct" not in predictions[0]:
        by_error = sorted(predictions, key=lambda row: abs(row["prediction"] - row["label"]), reverse=True)
        yield _sample_table("Largest errors", by_error[:NUM_SAMPLES])
        yield _sample_table("Smallest errors", by_error[: -NUM_SAMPLES - 1 : -1])
        return
    wrong = sorted((row for row in predictions if not row["correct"]), key=lambda row: row["score"], reverse=True)
    right = [row for row in predictions if row["correct"]]
    if wrong:
        yield _sample_table(f"Wrong, and surest of it ({len(wrong):,} wrong in all)", wrong[:NUM_SAMPLES])
    if right:
        every = max(1, len(right) // NUM_SAMPLES)
        yield _sample_table(f"Right ({len(right):,} right in all)", right[::every][:NUM_SAMPLES])


def _sample_table(title: str, rows: Sequence[Record]) -> Samples:
    classes = "correct" in rows[0]
    shown = tuple(
        {
            "text": _shortened(" ⏵ ".join(row[key] for key in ("text", "text_pair") if key in row)),
            "label": _answer(row["label"]),
            "prediction": _answer(row["prediction"]),
            "score": f"{100 * row['score']:.0f} %" if classes else f"{row['prediction'] - row['label']:+.2f}",
            "mark": ("right" if row["correct"] else "wrong") if classes else "",
        }
        for row in rows
    )
    return Samples(title, "probability" if classes else "error", shown)


def _answer(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else f"{text[:MAX_SAMPLE_CHARACTERS].rstrip()} …"


def _routed(routing: Record) -> Iterable[Routed]:
    """The first and the last expert layer."""
    if not routing:
        return
    num_layers = routing["num_layers"]
    for layer in sorted({0, num_layers - 1}):
        yield Routed(
            title=f"Tokens and their experts, expert layer {layer + 1} of {num_layers}",
            intro=f"Each token with the numbers of its experts out of {routing['num_experts']}, the heaviest first; "
            "the colour is the heaviest one's.",
            samples=tuple(_tokens(sample, layer=layer) for sample in routing["samples"]),
        )


def _tokens(sample: Record, *, layer: int) -> tuple[Token, ...]:
    pairs = zip(sample["tokens"], sample["experts"][layer], strict=True)
    return tuple(
        Token(text=text, experts=" ".join(map(str, experts)), hue=round(experts[0] * GOLDEN_ANGLE) % 360)
        for text, experts in pairs
    )


def _flat(values: Record, *, prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {value}"
