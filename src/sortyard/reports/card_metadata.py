"""The header of a model card, in the hub's own terms: what is known, and the scores that were measured."""

import math
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from sortyard.data.glue import HUB_NAME, TASKS
from sortyard.reports.run_data import Evaluation
from sortyard.reports.wording import metric_name

PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
TAGS = ["sortyard", "bucket-attention", "mixture-of-experts", "lsh"]
METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}  # as the hub calls them


@dataclass(frozen=True)
class Release:
    """What the run does not know of its model.

    Attributes:
        place: What `from_pretrained` takes: a folder, or the name on a hub.
        license: The hub's identifier of the weights' licence.
        base_model: The hub's name of the model this one was made from, where it is not remembered.
    """

    place: str = "path/to/model"
    license: str | None = None
    base_model: str | None = None


LOCAL = Release()


def front_matter(
    *, name: str, architecture: str, base_model: str | None, evaluation: Evaluation | None, release: Release
) -> str:
    """Return the YAML between a card's first two lines of dashes.

    Args:
        name: The model's name in its results.
        architecture: The class that was saved; empty where it is not known.
        base_model: The hub's name of what the model was made from, where that is known.
        evaluation: The scores; None leaves results out.
        release: What the run does not know.
    """
    pipeline = next((task for ending, task in PIPELINES.items() if architecture.endswith(ending)), None)
    is_sparse = is_own(architecture)
    card = ModelCardData(
        license=release.license,
        library_name="sortyard" if is_sparse or not architecture else "transformers",
        pipeline_tag=pipeline,
        tags=TAGS if is_sparse else TAGS[:1],
        base_model=base_model,
        model_name=name if evaluation else None,
        eval_results=_eval_results(evaluation) if evaluation else None,
    )
    return str(card.to_yaml()).rstrip()


def is_own(architecture: str) -> bool:
    """Say whether a class is one of this library's."""
    return architecture.startswith("Sortyard")


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    result = evaluation.result
    kind, task = "text-classification" if result.get("type") != "regression" else "text-scoring", str(result["task"])
    is_public = task in TASKS
    return [
        EvalResult(
            task_type=kind,
            dataset_type=HUB_NAME if is_public else task,
            dataset_name=f"GLUE {task}" if is_public else task,
            dataset_config=task if is_public else None,
            metric_type=METRICS.get(name, name),
            metric_name=metric_name(name),
            metric_value=round(float(value), 6),
        )
        for name, value in result["metrics"].items()
        if math.isfinite(value)
    ]
