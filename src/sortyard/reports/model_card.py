"""README.md of a run and of its model: a model card that says what was measured, and nothing else."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sortyard.durable import replace_bytes
from sortyard.evaluation.cost import ParameterCounts
from sortyard.reports.card_metadata import LOCAL, Release, front_matter, is_own
from sortyard.reports.headline import facts, headline
from sortyard.reports.origin import base_model
from sortyard.reports.run_data import Evaluation, Phase, RunData, read_run
from sortyard.reports.wording import count, metric_name, metric_value

RETURNED = {
    "ForSequenceClassification": "logits",
    "ForTokenClassification": "logits",
    "ForQuestionAnswering": "start_logits",
    "ForMaskedLM": "logits",
    "ForCausalLM": "logits",
}


@dataclass(frozen=True)
class Results:
    """Scores beside the baselines, as a table."""

    lead: str
    baselines: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_model_card(run: Path) -> Path:
    """Write `README.md` into a run's folder and, where there is one, into its `model` folder.

    Args:
        run: a run's folder, or a folder with the runs `pretrain` and `finetune`.

    Returns:
        The card's path in the run's folder.

    Raises:
        InputError: the folder holds no run, or one of its files is damaged.
    """
    data = read_run(Path(run))
    card = render_model_card(data).encode()
    model = data.final.path / "model"
    for folder in {data.path, model if model.is_dir() else data.path}:
        replace_bytes(folder / "README.md", card)
    return data.path / "README.md"


def render_model_card(data: RunData, *, release: Release = LOCAL) -> str:
    """Return the card's Markdown.

    Args:
        data: what the run has measured.
        release: where the model is to be found, and what the run does not know of it.
    """
    final, recipe = data.final, data.final.settings
    evaluation = _evaluation(final)
    origin = release.base_model or base_model(final.path / "model")
    return render_template(
        front_matter=front_matter(
            name=_name(data),
            architecture=final.architecture,
            base_model=origin,
            evaluation=evaluation,
            release=release,
        ),
        title=inline(_name(data)),
        summary=_summary(final, evaluation=evaluation),
        source="the run",
        snippet=snippet(final.architecture, place=release.place),
        results=_results(evaluation) if evaluation else None,
        course=headline(data).verdict,
        training=[*([f"Made from: {inline(origin)}"] if origin else []), *_training(data, recipe=recipe)],
        limits=_limits(final, evaluation=evaluation, recipe=recipe),
    )


def render_template(**values: Any) -> str:
    """Fill in the card's template: Markdown, not HTML, so values come reduced to one line and escaped by `inline`."""
    templates = Environment(
        loader=PackageLoader("sortyard.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("model_card.md.j2").render(version=version("sortyard"), **values)


def _evaluation(phase: Phase) -> Evaluation | None:
    """Choose the scores of the run's own end, and those of a later `sortyard eval` only where there are no others."""
    return next((one for one in phase.evaluations if "metrics" in one.result), None)


def _name(data: RunData) -> str:
    return str(data.final.settings.get("name") or data.path.resolve().name)


def _summary(phase: Phase, *, evaluation: Evaluation | None) -> str:
    what = "A sparse encoder with bucket attention and routed experts" if is_own(phase.architecture) else "A model"
    kind = ", adapted to text" if phase.is_adapting else ", pretrained on text"
    task = f", fine-tuned on {inline(str(evaluation.result['task']))}" if evaluation else kind
    return f"{what}{task}.{size_sentence(phase.parameters)}"


def size_sentence(parameters: ParameterCounts | None) -> str:
    """Say how large a model is, with a space before; nothing where it was not counted."""
    if parameters is None:
        return ""
    return f" It has {count(parameters.total)} parameters, {count(parameters.active)} of them active for a token."


def snippet(architecture: str, *, place: str) -> str:
    """Write the lines of Python that run a model once.

    Args:
        architecture: the class that was saved.
        place: what `from_pretrained` takes.
    """
    head = next((name for name in RETURNED if architecture.endswith(name)), "")
    auto, result = f"AutoModel{head}", RETURNED.get(head, "last_hidden_state")
    return "\n".join(
        (
            "import sortyard",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f'name = "{place}"',
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            f"model = {auto}.from_pretrained(name).eval()",
            f'{result} = model(**tokenizer("A text.", return_tensors="pt")).{result}',
        )
    )


def _results(evaluation: Evaluation) -> Results:
    result = evaluation.result
    baselines, interval, main = result.get("baselines") or [], result.get("interval"), result["main_metric"]
    lead = f"Scored on {result['num_examples']:,} examples of {inline(evaluation.name)}."
    if interval:
        low, high = (metric_value(interval[end], metric=main) for end in ("low", "high"))
        lead += (
            f" {100 * interval['level']:.0f} % interval of {metric_name(main)}: {low} to {high} ({interval['method']})."
        )
    rows = tuple(
        (metric_name(name), *(metric_value(scores[name], metric=name) for scores in _all_scores(result)))
        for name in result["metrics"]
    )
    return Results(lead, tuple(inline(other["name"]) for other in baselines), rows)


def _all_scores(result: dict[str, Any]) -> list[dict[str, float]]:
    return [result["metrics"], *(other["metrics"] for other in result.get("baselines") or [])]


def _training(data: RunData, *, recipe: dict[str, Any]) -> list[str]:
    lines = [f"{what}: {inline(where)}" for what, where in _sources(data, recipe=recipe)]
    shown = ("Tokens seen", "Training time", "Peak memory", "Attention sparsity", "Device", "Date")
    lines += [
        f"{fact.name}: {inline(fact.value)}" + (f" ({inline(fact.note)})" if fact.note else "")
        for fact in facts(data)
        if fact.name in shown
    ]
    lines += _experts(data)
    if "seed" in data.final.environment:
        lines.append(f"Seed: {data.final.environment['seed']}")
    if versions := data.final.environment.get("versions"):
        lines.append("Versions: " + ", ".join(inline(f"{name} {known}") for name, known in versions.items() if known))
    return lines or ["The run recorded nothing of its training."]


def _experts(data: RunData) -> list[str]:
    """How evenly the experts are used: as it was counted on texts, else over the last steps of training."""
    final = data.final
    if "headline" in final.routing:
        counted = f"{final.routing['headline']:.3f} in the least even layer, on {final.routing['num_tokens']:,} tokens"
        return [f"Utilisation of the experts: {counted}; {final.routing['dead_experts']} idle"]
    used = final.last.get("utilisation")
    return [f"Utilisation of the experts: {used:.3f} in the last steps"] if used else []


def _sources(data: RunData, *, recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Name the data by the last part of its path: the rest tells of the machine, not of the data."""
    found = []
    for phase in data.phases:
        name = "adapt" if phase.is_adapting else "finetune" if phase.is_finetuning else "pretrain"
        section = (phase.settings or recipe).get(name) or {}
        if phase.is_finetuning and section.get("task"):
            task = section["task"]
            found.append(
                ("Fine-tuned on", f"{task.get('name', 'a task')}, from {Path(str(task.get('data', ''))).name}")
            )
        elif not phase.is_finetuning and section.get("data"):
            what = "Adapted on" if phase.is_adapting else "Pretrained on"
            found.append((what, Path(str(section["data"].get("path", ""))).name))
    return found


def _limits(phase: Phase, *, evaluation: Evaluation | None, recipe: dict[str, Any]) -> list[str]:
    lines = []
    length = ((recipe.get("finetune") or {}).get("task") or {}).get("max_length") if evaluation else None
    if length:
        lines.append(f"Texts were cut to {length} tokens; longer ones lose their end.")
    if evaluation:
        lines.append("The scores hold for texts like those of the split named above; other texts were not tried.")
        if evaluation.result["num_examples"] < 1000:
            lines.append("The split is small, so mind the interval.")
    elif phase.is_adapting:
        lines.append("The model was adapted without labels; how well it does its task afterwards was not measured.")
    else:
        lines.append("The model was trained on text alone; it needs fine-tuning before it answers anything.")
    if phase.environment.get("seed") is not None:
        lines.append("One seed was trained; its spread over seeds is not known.")
    return [
        *lines,
        "What the training text holds of errors and prejudice, the model may repeat; this was not measured.",
    ]


def inline(text: str) -> str:
    """Put a value from outside on one line, harmless to Markdown and its tables."""
    flat = " ".join(text.split())
    for sign in "\\`*_[]<>|":
        flat = flat.replace(sign, f"\\{sign}")
    return flat
