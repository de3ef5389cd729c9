"""`bench training`: time and memory of a training step (claims C8 to C11, as far as one process can say)."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.studies.bench.budgets import Budget
from sortyard.studies.bench.comparison import Terms, compare_sides, notes_of, sides_study
from sortyard.studies.bench.memory import peak_allocated
from sortyard.studies.bench.results import BenchResult, bench_command, new_result
from sortyard.studies.bench.runner import Call, Clock, ratio_of, wall_clock
from sortyard.studies.bench.study import Cells, Say, run_study
from sortyard.studies.bench.training_cases import MICRO_BATCHES, MIX_LONGEST, ROWS, TrainingCase, equal_rows, make_model
from sortyard.studies.bench.training_page import training_page, training_text
from sortyard.studies.bench.training_sides import TOPICS, TrainingSide, find_sides
from sortyard.studies.bench.training_summary import summarise

Json = dict[str, Any]
_CHECKED_LENGTH = 64  # of the rows whose gradients are compared in float64
WHAT = (
    "seconds of one training step (forward, backward, update) and the peak of what torch allocates during it, on top "
    "of weights and optimizer state: gradients and activations; the sides of a cell take turns, ratios are medians "
    "over the rounds"
)


@dataclass(frozen=True)
class TrainingPlan:
    """What `bench training` measures.

    Attributes:
        topics: Among the keys of `TOPICS`.
        lengths: Tokens of a sequence, where a topic does not set its own.
        tokens: Tokens of a step.
        hidden_size: Width, a multiple of 192.
        layers: Layers.
        vocabulary: Token ids.
        threads: Threads of torch.
        repetitions: Measured rounds of a cell.
        seed: Seed of weights, tokens and lengths.
        device: "cpu" or "cuda".
        minutes: Time for the whole; infinite where it does not matter.
    """

    topics: tuple[str, ...]
    lengths: tuple[int, ...]
    tokens: int
    hidden_size: int
    layers: int
    vocabulary: int
    threads: int
    repetitions: int
    seed: int
    device: str
    minutes: float

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = {
            "--topics": ",".join(self.topics),
            "--lengths": ",".join(map(str, self.lengths)),
            "--tokens": self.tokens,
            "--hidden-size": self.hidden_size,
            "--layers": self.layers,
            "--vocabulary": self.vocabulary,
            "--threads": self.threads,
            "--repetitions": self.repetitions,
            "--seed": self.seed,
            "--device": self.device,
            "--minutes": self.minutes,
        }
        return bench_command("training", words)

    def settings(self) -> Json:
        """Return what changes the value of a cell."""
        return {
            "tokens": self.tokens, "hidden_size": self.hidden_size, "layers": self.layers,
            "vocabulary": self.vocabulary, "repetitions": self.repetitions, "device": self.device,
            "seconds_are": "of the processor, in this process" if self.clock() is time.process_time else "of the wall",
        }  # fmt: skip

    def clock(self) -> Clock:
        """What tells seconds: with one thread on a CPU its own time, which does not count the work of others."""
        return time.process_time if self.threads == 1 and self.device == "cpu" else wall_clock

    def cases(self) -> list[TrainingCase]:
        """Return every cell's case."""
        own = {"accumulation": (max(1, self.tokens // ROWS),), "packing": (min(MIX_LONGEST, self.tokens),)}
        return [
            TrainingCase(
                topic=topic, length=length, tokens=self.tokens, hidden_size=self.hidden_size, layers=self.layers,
                vocabulary=self.vocabulary, seed=self.seed, device=self.device,
            )
            for topic in self.topics
            for length in own.get(topic, self.lengths)
        ]  # fmt: skip


def run_training(plan: TrainingPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing training.json after every cell and training.html at the end.

    Args:
        plan: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the folder holds a result of other settings, code or machine.
    """
    begun = new_result(
        "training", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device=plan.device,
        settings=plan.settings(), packages=("transformers",), sources=("ops", "model", "parallel", "training"),
    )  # fmt: skip
    study = sides_study(
        begun,
        cases=plan.cases(),
        sides=lambda case: find_sides(case.topic),
        asked=(),
        memory=(),
        measure=lambda case, sides, cells, seconds: measure_cell(
            case, sides, plan=plan, cells=cells, seconds=seconds, say=say
        ),
        summarise=lambda cells: {
            "sides": {topic: notes_of(find_sides(topic), _of(topic, cells)) for topic in TOPICS if _of(topic, cells)},
            **summarise(cells),
        },
        write_page=training_page,
        write_text=training_text,
    )
    return run_study(study, folder=folder, fresh=fresh, say=say, seconds=60 * plan.minutes)


def _of(topic: str, cells: Cells) -> Cells:
    return {key: cell for key, cell in cells.items() if cell["topic"] == topic}


def measure_cell(
    case: TrainingCase,
    sides: Mapping[str, TrainingSide],
    *,
    plan: TrainingPlan,
    cells: Cells,
    seconds: float,
    say: Say,
) -> Json:
    """Measure one case: time in turns, then the memory of each side.

    Args:
        case: The case.
        sides: The sides by name.
        plan: Repetitions, threads and clock.
        cells: What was measured before.
        seconds: Time that the cell should keep to.
        say: Takes a line of progress.

    Returns:
        The cell: for each side its seconds, ratios to the first side, peak memory, sizes, or why it was skipped; of
        accumulation also how far its gradients are from those of one batch.
    """

    def calls(names: Collection[str]) -> Mapping[str, Call]:
        for name in names:
            sides[name].warm(case)
        return {name: sides[name].call(case) for name in names}

    # The memory of a side takes one more step, so that of r rounds and one step each, r are for time.
    share = seconds * plan.repetitions / (plan.repetitions + 1)
    terms = Terms(
        repetitions=plan.repetitions, threads=plan.threads, budget=Budget(patience_seconds=math.inf), probe="",
        memory=(), seconds=share, warmup=0, clock=plan.clock(),
    )  # fmt: skip
    records = compare_sides(case, sides, calls=calls, terms=terms, cells=cells, say=say)
    base = next(iter(records.values()))
    for name, record in records.items():
        if not record["seconds"]:
            continue
        peak = peak_allocated(sides[name].call(case), device=case.device)
        median = record["median_seconds"]
        record |= {"peak_extra_bytes": peak.num_bytes, "memory_by": peak.method}
        record["real_tokens_per_second"] = record["real_tokens"] / median
        record["times_as_long"] = ratio_of(record["seconds"], base["seconds"]).record() if base["seconds"] else None
    extra = {"gradients": compare_gradients(case)} if case.topic == "accumulation" else {}
    return {"topic": case.topic, "length": case.length, "sides": records, **extra}


def compare_gradients(case: TrainingCase) -> Json:
    """How far the gradients of a step in portions are from those of the same rows at once, in float64.

    The balance loss is off: it is one of each micro-batch by design, not of the step.
    """
    length = min(case.length, _CHECKED_LENGTH)
    small = TrainingCase(**(case.fields() | {"length": length, "tokens": ROWS * length}))
    model = make_model(small, is_dense=False, balance="none").double().to(case.device)
    objective, found, counts = MaskedLMObjective(), {}, []
    for portions in (1, MICRO_BATCHES):
        batches = equal_rows(small, micro_batches=portions)
        counts = [objective.count_targets(batch) for batch in batches]
        model.zero_grad()
        for batch in batches:
            on_device = {name: value.to(case.device) for name, value in batch.items()}
            objective.compute(model, on_device, num_targets=sum(counts)).total.backward()  # type: ignore[no-untyped-call]
        found[portions] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    whole, parts = found[1], found[MICRO_BATCHES]
    errors = {name: float(torch.linalg.vector_norm(parts[name] - one)) for name, one in whole.items()}
    norms = {name: float(torch.linalg.vector_norm(one)) for name, one in whole.items()}
    largest = max(norms.values())
    return {
        "dtype": "float64", "rows": ROWS, "length": length, "balance": "none", "targets": counts,
        "relative_error": math.hypot(*errors.values()) / math.hypot(*norms.values()),
        "worst_relative_error": max(errors[n] / norms[n] for n in whole if norms[n] > 1e-12 * largest),
    }  # fmt: skip
