"""GLUE figures that others have published, for a table in which they stand beside measured ones, marked as such.

A figure that no source states for a model is left out: it shows as a dash. Development sets throughout. A task with two
metrics has one figure in these sources, which may be either of them.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedModel:
    """One row.

    Attributes:
        name: The model's.
        parameters: Their number, in millions; None where the source was not seen to state it.
        source: Where the figures stand.
        protocol: How the model was fine-tuned, as far as it is known here.
        scores: Percent, by task.
        average: Percent, as the source states it; None where it does not.
        average_of: Which tasks that average is over.
    """

    name: str
    parameters: float | None
    source: str
    protocol: str
    scores: dict[str, float] = field(default_factory=dict)
    average: float | None = None
    average_of: str = "as its source counts"

    def record(self, tasks: list[str]) -> dict[str, Any]:
        """Return the row as JSON values.

        Args:
            tasks: Those that were measured: the row gets its mean over the same ones where it has them all.
        """
        same = [self.scores[task] for task in tasks if task in self.scores]
        return {
            "name": self.name,
            "parameters_millions": self.parameters,
            "source": self.source,
            "protocol": self.protocol,
            "scores": self.scores,
            "average": self.average,
            "average_of": self.average_of if self.average is not None else None,
            "average_of_same_tasks": round(sum(same) / len(same), 2) if same and len(same) == len(tasks) else None,
        }


_ETTIN = "arXiv 2507.11412, table 7"
_MODERNBERT = "arXiv 2412.13663"
_SWEPT = "the best of a sweep for each task; RTE, MRPC and STS-B start from the MNLI model"

PUBLISHED = (
    PublishedModel("BERT-base", None, "arXiv 2312.17482, table 1", "as its source", average=83.2),
    PublishedModel(
        "BERT-large", 340, "fairseq, examples/roberta/README.md", "one model for each task",
        {"sst2": 93.2, "mnli": 86.6, "qnli": 92.3, "qqp": 91.3, "rte": 70.4, "mrpc": 88.0, "cola": 60.6, "stsb": 90.0},
        84.1, "the row's eight tasks, WNLI left out; a mean taken here",
    ),
    PublishedModel("ModernBERT-base", 149.7, _MODERNBERT, _SWEPT, average=88.4),
    PublishedModel("ModernBERT-large", 395.9, _MODERNBERT, _SWEPT, average=90.4),
    PublishedModel("Ettin 68M", 68, _ETTIN, "as its source", {"sst2": 94.4, "mnli": 87.0}, 87.2),
    PublishedModel("Ettin 150M", 150, _ETTIN, "as its source", {"sst2": 95.8, "mnli": 89.2}, 88.9),
    PublishedModel(
        "crammed BERT", None, "JonasGeiping/cramming, model_card.md", "the protocol `one`: one setting, median of 5",
        {"sst2": 92.0, "mnli": 84.1, "qnli": 90.2, "qqp": 87.5, "rte": 58.5, "mrpc": 88.9, "cola": 53.3, "stsb": 87.4},
        80.7,
    ),
)  # fmt: skip
