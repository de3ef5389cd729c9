"""How well a language model knows several kinds of text."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.jobs.corpora import check_corpus, other_text
from sortyard.jobs.display import Display
from sortyard.jobs.folders import is_demo, open_job
from sortyard.jobs.held_out import score_texts
from sortyard.jobs.routing_texts import named_sources
from sortyard.jobs.sections import pretrain_section
from sortyard.runs.folder import RunFolder

if TYPE_CHECKING:
    from sortyard.evaluation.perplexity import LanguageModelScore
    from sortyard.recipe import Recipe

RESULT = "perplexity.json"
ALL = "all"


def evaluate_domains(
    path: Path, *, data: Sequence[str], text_column: str | None, batch_size: int, display: Display
) -> dict[str, Any]:
    """Scores a pretraining run's model on each text by itself and on all of them; kept as `eval/perplexity.json`.

    Args:
        path: A pretraining run, or a demo.
        data: Texts, as `PATH` or `NAME=PATH`.
        text_column: Column that holds the text; None takes the run's own.
        batch_size: Rows in one forward pass.
        display: Told what is being done.

    Returns:
        JSON values: loss, perplexity and accuracy by domain and in total.

    Raises:
        InputError: The run is no language model's, or a text cannot be used.
    """
    sources = named_sources(data)
    if ALL in sources:
        raise InputError(f"--data {ALL}: is what the total is called; give the text another name, as NAME=PATH")
    run = RunFolder.open(path / "pretrain" if is_demo(path) else path)
    job, recipe = open_job(run)
    if job.verb != "pretrain":
        raise InputError(
            f"{path}: is a run of `sortyard {job.verb}`; perplexity by domain needs a pretraining run, as only that "
            "says how text is masked"
        )
    _check(recipe, sources.values(), text_column=text_column)
    scores = score_texts(
        run, recipe=recipe, texts=list(sources.values()), batch_size=batch_size, display=display,
        text_column=text_column,
    )  # fmt: skip
    rows = []
    for (name, source), score in zip(sources.items(), scores, strict=True):
        display.say(f"domain    {name}: loss {score.loss:.4f}, {score.num_targets:,} targets")
        rows.append({"name": name, "source": Path(source).name, **_record(score)})
    section = pretrain_section(recipe)
    record = {
        "objective": section.objective,
        "masking": section.masking.model_dump(mode="json") if section.objective == "masked_lm" else None,
        "sequence_length": section.data.sequence_length,
        "seed": recipe.seed,
        "date": datetime.now(UTC).date().isoformat(),
        "domains": rows,
        "total": {"name": ALL, **_total(rows)},
    }
    run.eval.mkdir(exist_ok=True)
    replace_bytes(run.eval / RESULT, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return {"run": run.path, "file": run.eval / RESULT, **record}


def _check(recipe: "Recipe", sources: Any, *, text_column: str | None) -> None:
    """Reads each text's first document, so that a wrong path or column is known before the long work."""
    own = pretrain_section(recipe).data
    for source in sources:
        check_corpus(other_text(own.model_copy(update={"text_column": text_column or own.text_column}), source))


def _record(score: "LanguageModelScore") -> dict[str, Any]:
    """A score as JSON values, which know no infinity."""
    return score.metrics() | {"perplexity": score.perplexity if math.isfinite(score.perplexity) else None}


def _total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over every target of all texts."""
    targets = sum(row["num_targets"] for row in rows)
    loss, accuracy = (sum(row[name] * row["num_targets"] for row in rows) / targets for name in ("loss", "accuracy"))
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "accuracy": accuracy,
        "num_targets": targets,
    }
