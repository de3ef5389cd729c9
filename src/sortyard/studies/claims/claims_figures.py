"""The pictures of the ledger: those that the commands' own pages show, claim by claim."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from sortyard.reports.figures import Figure
from sortyard.studies.bench.attention_page import attention_figures
from sortyard.studies.bench.dynamic_buckets_page import dynamic_figures
from sortyard.studies.bench.encoder_page import encoder_figures
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.bench.training_page import training_figures
from sortyard.studies.claims.findings import read_json
from sortyard.studies.gates.gates_page import gates_figures
from sortyard.studies.sparsity.sparsity_page import sparsity_figures
from sortyard.studies.trained.twin_page import twin_figures

Draw = Callable[[BenchResult], tuple[Figure, ...]]
SOURCES: Mapping[str, tuple[str, Draw]] = {
    "C1": ("C1/attention/attention.json", attention_figures),
    "C2": ("C2/dynamic-buckets/dynamic_buckets.json", dynamic_figures),
    "C5": ("C5/encoder/encoder.json", encoder_figures),
    "C6": ("C6/gates/gates.json", gates_figures),
    "C7": ("C7/sparsity/sparsity.json", sparsity_figures),
    "C8": ("C8/training/training.json", partial(training_figures, topic="precision")),
    "C9": ("C8/training/training.json", partial(training_figures, topic="checkpointing")),
    "C11": ("C11/twin/twin.json", twin_figures),
}


def claim_figures(work: Path) -> dict[str, tuple[Figure, ...]]:
    """Draw what is measured.

    Args:
        work: The folder with the results of the commands.

    Returns:
        Pictures by claim; their ids begin with the claim's.
    """
    found = {}
    for claim, (place, draw) in SOURCES.items():
        stored = read_json(work / place)
        if stored is not None and stored["cells"]:
            figures = draw(BenchResult(**stored))
            found[claim] = tuple(replace(figure, id=f"{claim}-{figure.id}") for figure in figures)
    return found
