"""`bench encoder`: whole encoders beside BERT and ModernBERT, on short sentences and by length."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sortyard.studies.bench.budgets import Budget
from sortyard.studies.bench.comparison import Terms, compare_sides, notes_of, sides_study
from sortyard.studies.bench.encoder_cases import FIXED, PADDED_TO, SHORT, EncoderCase
from sortyard.studies.bench.encoder_page import encoder_page, encoder_text
from sortyard.studies.bench.encoder_sides import EncoderSide, encoder_probe, find_sides
from sortyard.studies.bench.encoder_summary import summarise
from sortyard.studies.bench.results import BenchResult, bench_command, new_result
from sortyard.studies.bench.runner import Call
from sortyard.studies.bench.study import Cells, Say, run_study

Json = dict[str, Any]
WHAT = (
    "seconds of the forward passes over some batches, without gradients and without a head, in alternated runs; tokens "
    "a second count real tokens, not padding; weights and tokens are random; memory is the peak of one call in a "
    "process of its own on top of weights and inputs"
)


@dataclass(frozen=True)
class EncoderPlan:
    """What `bench encoder` measures.

    Attributes:
        short: Whether to run sentences of SST-2's lengths.
        lengths: Tokens of equally long sequences; may be empty if `short`.
        dtypes: Among "fp32" and "bf16".
        sentences: About how many short sentences a call runs.
        threads: Threads of torch.
        repetitions: Measured rounds of a cell; a slow side has fewer.
        memory: Lengths at which memory is measured.
        sides: Names to measure; empty = all.
        seed: Seed of weights, lengths and tokens.
        device: "cpu" or "cuda".
        budget: Where a side stops.
        minutes: Time for the whole; infinite where it does not matter.
    """

    short: bool
    lengths: tuple[int, ...]
    dtypes: tuple[str, ...]
    sentences: int
    threads: int
    repetitions: int
    memory: tuple[int, ...]
    sides: tuple[str, ...]
    seed: int
    device: str
    budget: Budget
    minutes: float

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = {
            "--lengths": ",".join([*([SHORT] if self.short else []), *map(str, self.lengths)]),
            "--dtypes": ",".join(self.dtypes),
            "--sentences": self.sentences,
            "--threads": self.threads,
            "--repetitions": self.repetitions,
            "--memory": ",".join(map(str, self.memory)) or "none",
            "--call-seconds": self.budget.call_seconds,
            "--seed": self.seed,
            "--device": self.device,
            "--minutes": self.minutes,
            "--sides": ",".join(self.sides),
        }
        return bench_command("encoder", words)

    def settings(self) -> Json:
        """Return what changes the value of a cell; the rest only chooses what there is."""
        return {"sentences": self.sentences, "repetitions": self.repetitions, "device": self.device}

    def cases(self) -> list[EncoderCase]:
        """Return every cell's case, lengths rising fastest."""
        kinds = [*([(SHORT, PADDED_TO)] if self.short else []), *((FIXED, n) for n in sorted(self.lengths))]
        return [
            EncoderCase(
                workload=workload, length=length, dtype=dtype, sentences=self.sentences,
                positions=max([PADDED_TO, *self.lengths]), seed=self.seed, device=self.device,
            )
            for dtype in self.dtypes
            for workload, length in kinds
        ]  # fmt: skip


def run_encoder(plan: EncoderPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing encoder.json after every cell and encoder.html at the end.

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
        "encoder", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device=plan.device,
        settings=plan.settings(), packages=("transformers",), sources=("ops", "model"),
    )  # fmt: skip
    everyone = find_sides(SHORT) | find_sides(FIXED)
    study = sides_study(
        begun,
        cases=plan.cases(),
        sides=lambda case: find_sides(case.workload),
        asked=plan.sides,
        memory=plan.memory,
        measure=lambda case, sides, cells, seconds: measure_cell(
            case, sides, plan=plan, cells=cells, seconds=seconds, say=say
        ),
        summarise=lambda cells: {"sides": notes_of(everyone, cells), **summarise(cells)},
        write_page=encoder_page,
        write_text=encoder_text,
    )
    return run_study(study, folder=folder, fresh=fresh, say=say, seconds=60 * plan.minutes)


def measure_cell(
    case: EncoderCase,
    sides: Mapping[str, EncoderSide],
    *,
    plan: EncoderPlan,
    cells: Cells,
    seconds: float,
    say: Say,
) -> Json:
    """Measure one case: memory in processes of their own, then time, alternated.

    Args:
        case: The case.
        sides: The sides by name.
        plan: Repetitions, threads, budget and where to measure memory.
        cells: What was measured before, from which the cost is predicted.
        seconds: Time that the cell should keep to.
        say: Takes a line of progress.

    Returns:
        The cell: for each side its seconds, real tokens a second, sizes, peak memory, or why it was skipped.
    """

    def calls(names: Collection[str]) -> Mapping[str, Call]:
        return {name: sides[name].call(case) for name in names}

    terms = Terms(
        repetitions=plan.repetitions, threads=plan.threads, budget=plan.budget,
        probe=f"{encoder_probe.__module__}:{encoder_probe.__name__}", memory=plan.memory, seconds=seconds,
    )  # fmt: skip
    records = compare_sides(case, sides, calls=calls, terms=terms, cells=cells, say=say)
    for record in records.values():
        median = record["median_seconds"]
        record["tokens_per_second"] = record["real_tokens"] / median if median else None
        record["sentences_per_second"] = record["sentences"] / median if median else None
    return {"length": case.length, "workload": case.workload, "dtype": case.dtype, "sides": records}
