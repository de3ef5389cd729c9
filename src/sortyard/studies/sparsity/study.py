"""`study sparsity`: how sparse a pretrained model's attention can be, as it is and after fine-tuning (claim C7)."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sortyard.data.vocabulary import Vocabulary
from sortyard.digests import files_digest
from sortyard.errors import InputError
from sortyard.jobs.adapting_start import find_model, load_start
from sortyard.studies.bench.results import BenchResult, new_result, resume_result, save_result
from sortyard.studies.gates.forecast import duration_text
from sortyard.studies.sparsity.cores import DENSE, Setting
from sortyard.studies.sparsity.measuring import Workbench
from sortyard.studies.sparsity.measuring import settings as measuring_settings
from sortyard.studies.sparsity.plan import ADAPTED, AS_IS, SETTING, TASK, Cell, SparsityPlan
from sortyard.studies.sparsity.pool import Work, measure_all
from sortyard.studies.sparsity.sparsity_page import sparsity_page, sparsity_text
from sortyard.studies.sparsity.summary import summarise
from sortyard.studies.sparsity.texts import read_labelled, read_text

Json = dict[str, Any]
Say = Callable[[str], None]
MEASURED = ("data", "model", "objectives", "ops", "training")  # the code of a cell
WHAT = (
    "masked-LM loss and fine-tuned accuracy of one pretrained model by the share of query-key pairs that its attention "
    "leaves out, measured on text (a summary counts as one key), against dense attention with equal data and seeds"
)
HELD_OUT_TOKENS = 24_576
SPLIT_SEED = 0
# Tokens that a core of a laptop trains and scores in a second: where nothing is measured yet, a first guess.
_GUESSED = {SETTING: 500.0, AS_IS: 8_000.0, ADAPTED: 2_500.0, TASK: 2_500.0}


@dataclass
class _Clock:
    """Whether a cell may still begin, judged by the cells of its kind before it."""

    minutes: float
    started: float = field(default_factory=time.perf_counter)
    left_out: int = 0

    def may_begin(self, cell: Cell, *, seconds: float) -> bool:
        fits = cell.measure == SETTING or time.perf_counter() - self.started + seconds <= 60 * self.minutes
        self.left_out += not fits
        return fits


def run_sparsity(plan: SparsityPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing sparsity.json after every cell and sparsity.html at the end.

    Args:
        plan: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the model or a source cannot be used, or the folder holds a result of another model, other settings,
            code, data or another machine.
    """
    clock = _Clock(plan.minutes)
    place = find_model(plan.model)
    bench = _workbench(plan, place=place, say=say)
    begun = new_result(
        "sparsity", what=WHAT, command=plan.command(), seed=SPLIT_SEED, threads=plan.threads, device=plan.device,
        settings=_settings(plan, place=place), sources=MEASURED,
    )  # fmt: skip
    result = resume_result(begun, folder=folder, fresh=fresh)
    _check_same_data(result, bench, folder=folder)
    try:
        _measure_settings(plan, bench, result=result, clock=clock, folder=folder, say=say)
        _measure_scores(plan, bench, result=result, clock=clock, folder=folder, say=say)
        result.complete = not clock.left_out
    finally:  # an interrupted run keeps what it has
        if result.cells:
            _save(result, folder=folder)
            sparsity_page(result, folder=folder)
    if clock.left_out:
        say(
            f"{clock.left_out} cells are left out for lack of time; the same command goes on, --minutes gives it longer"
        )
    return result, sparsity_text(result)


def _workbench(plan: SparsityPlan, *, place: str, say: Say) -> Workbench:
    start = load_start(place, seed=0)
    config = start.model.config
    if type(start.model).__name__ != "SortyardForMaskedLM" or config.causal:
        raise InputError(f"{plan.model}: is no masked language model; give a run of `sortyard pretrain`")
    longest = max(plan.lengths + (plan.task_lengths if plan.task_data else ()))
    if longest > config.max_position_embeddings:
        raise InputError(
            f"--lengths {longest}: the model reads at most {config.max_position_embeddings:,} tokens "
            "(max_position_embeddings)"
        )
    say("reading the text")
    texts = read_text(
        plan.texts, tokenizer=start.tokenizer, lengths=sorted({*plan.lengths, *plan.task_lengths}),
        held_out_tokens=HELD_OUT_TOKENS, seed=SPLIT_SEED,
    )  # fmt: skip
    tasks = {}
    if plan.task_data:
        tasks = read_labelled(
            plan.task_data, column=plan.label_column, tokenizer=start.tokenizer, lengths=plan.task_lengths,
            most_labels=plan.labels, most_passages=plan.passages, seed=SPLIT_SEED,
        )  # fmt: skip
    for length, task in tasks.items():
        counts = f"{len(task.training[0])} passages to train on, {len(task.held_out[0])} of {task.split} held out"
        say(f"{length:,} tokens: {len(task.labels)} labels, {counts}")
    return Workbench(
        place, Vocabulary.of(start.tokenizer), texts, tasks, plan.adapt_steps, plan.task_steps, plan.device
    )


def _settings(plan: SparsityPlan, *, place: str) -> Json:
    return {
        "model": Path(plan.model).name,
        "weights": files_digest(sorted(Path(place).glob("*.safetensors"))),
        "adapt_steps": plan.adapt_steps,
        "task_steps": plan.task_steps,
        "held_out_tokens": HELD_OUT_TOKENS,
        **measuring_settings(),
    }


def _check_same_data(result: BenchResult, bench: Workbench, *, folder: Path) -> None:
    """Refuse to compare attention over different texts."""
    for key, cell in result.cells.items():
        known = bench.tasks if cell["measure"] == TASK else bench.texts
        if cell["length"] in known and cell["data"] != known[cell["length"]].digest():
            raise InputError(
                f"{folder / result.name}.json: {key} was measured on other data than is given now; give the same, or "
                "--out names another folder and --fresh replaces everything there"
            )


def _measure_settings(
    plan: SparsityPlan, bench: Workbench, *, result: BenchResult, clock: _Clock, folder: Path, say: Say
) -> None:
    missing: list[Work] = [(cell, None) for cell in plan.settings_wanted() if cell.key not in result.cells]
    if missing:
        say(f"finding {len(missing)} settings")
    _measure(missing, plan, bench, result=result, clock=clock, folder=folder, say=say)


def _measure_scores(
    plan: SparsityPlan, bench: Workbench, *, result: BenchResult, clock: _Clock, folder: Path, say: Say
) -> None:
    work: list[Work] = [(c, _setting(c, result)) for c in plan.cells() if c.key not in result.cells]
    seconds = sum(_expected(cell, plan, result) for cell, _ in work) / plan.jobs
    limit = "" if math.isinf(plan.minutes) else f", of which {plan.minutes:g} min at most are spent"
    say(f"{len(work)} cells to measure, about {duration_text(seconds)}{limit}")
    say("interrupt at will, the same command goes on")
    _measure(work, plan, bench, result=result, clock=clock, folder=folder, say=say)


def _setting(cell: Cell, result: BenchResult) -> Setting:
    if cell.selection == DENSE:
        return Setting(DENSE)
    found = result.cells[Cell(SETTING, cell.length, cell.selection, cell.sparsity).key]
    return Setting.of_record(cell.selection, found["setting"])


def _measure(
    work: Sequence[Work], plan: SparsityPlan, bench: Workbench, *, result: BenchResult, clock: _Clock, folder: Path,
    say: Say,
) -> None:  # fmt: skip
    def fits(cell: Cell) -> bool:
        return clock.may_begin(cell, seconds=_expected(cell, plan, result))

    found = measure_all(work, bench, jobs=plan.jobs, threads=plan.threads, fits=fits)
    for number, (cell, values) in enumerate(found, start=1):
        result.cells[cell.key] = values
        _save(result, folder=folder)
        value = f"{values['measured']:.1%} sparse" if cell.measure == SETTING else f"{values['score']:.4f}"
        say(f"{number}/{len(work)}  {cell.key}: {value}, {values['seconds']:.0f} s")


def _expected(cell: Cell, plan: SparsityPlan, result: BenchResult) -> float:
    """Seconds that a cell will take: as long as those of its kind, else by a guess."""
    known = [
        float(found["seconds"])
        for found in result.cells.values()
        if (found["measure"], found["length"]) == (cell.measure, cell.length)
        and (found["selection"] == cell.selection or cell.selection == DENSE)
    ] or _of_kind(cell, result.cells)
    if known:
        return sum(known) / len(known)
    from sortyard.studies.sparsity.measuring import ADAPT_TOKENS, TASK_TOKENS

    tokens = {ADAPTED: plan.adapt_steps * ADAPT_TOKENS, TASK: plan.task_steps * TASK_TOKENS}
    return tokens.get(cell.measure, HELD_OUT_TOKENS) / _GUESSED[cell.measure] / _speed(result)


def _speed(result: BenchResult) -> float:
    """How many times as fast as guessed this machine scores; 1 as long as nothing is scored."""
    scored = [float(cell["seconds"]) for cell in result.cells.values() if cell["measure"] == AS_IS]
    return HELD_OUT_TOKENS / _GUESSED[AS_IS] / max(statistics.median(scored), 0.1) if scored else 1.0


def _of_kind(cell: Cell, cells: Mapping[str, Json]) -> list[float]:
    kind = (cell.measure, cell.length)
    return [float(found["seconds"]) for found in cells.values() if (found["measure"], found["length"]) == kind]


def _save(result: BenchResult, *, folder: Path) -> None:
    """Write what there is, with what follows from it, so that no crash leaves the one without the other."""
    result.summary = summarise(result.cells)
    save_result(result, folder=folder)
