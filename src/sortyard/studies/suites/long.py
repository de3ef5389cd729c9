"""`sortyard eval --suite long`: the same documents read at several lengths, each cell fine-tuned alike."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sortyard.data.options import TaskOptions
from sortyard.durable import replace_bytes
from sortyard.errors import InputError, LostProcessError
from sortyard.jobs.display import Display
from sortyard.jobs.loading import load_start_tokenizer, start_shapes
from sortyard.jobs.paths import fingerprint
from sortyard.studies.suites.listops import ListOpsSizes
from sortyard.studies.suites.long_documents import (
    Documents,
    Wanted,
    find_files,
    listops_documents,
    read_documents,
    write_documents,
)
from sortyard.studies.suites.model import SuiteModel, origin, suite_folder
from sortyard.studies.suites.pages import write_suite_page
from sortyard.studies.suites.protocols import OF_EVERY_RUN, check_changes, settings_of
from sortyard.studies.suites.runs import Score, TrainingRun, check_plan, read_score, run_all

Json = dict[str, Any]
LENGTHS = (512, 1024, 2048, 4096)
METRIC = "accuracy"
# The learning rate at which the attention of an upcycled encoder settled on long reviews; two passes, batches of 8.
SETTINGS = (
    "finetune.loop.epochs=2", "finetune.loop.micro_batch_size=8", "finetune.loop.eval_every=0",
    "finetune.optimizer.lr=1e-4", "finetune.schedule.name=linear", "finetune.schedule.warmup_ratio=0.1",
)  # fmt: skip
MOST_COUNTED = 200  # documents whose tokens are counted


@dataclass(frozen=True)
class LongPlan:
    """What to measure.

    Attributes:
        model: A run, a model's folder or a hub name.
        data: Folders and files in which the documents are found by their names.
        tasks: Of `LONG_TASKS`.
        lengths: Tokens read of a document, in order.
        train: Documents to learn from.
        test: Documents to be scored on.
        changes: Settings that win over the suite's.
        seeds: Runs of a cell, with seeds 0, 1, ...
        jobs: Runs at a time.
        out: Folder of the runs; None takes `runs/long-MODEL`.
        keep_models: Whether the fine-tuned weights stay.
        sizes: The largest expressions of ListOps.
    """

    model: Path
    data: tuple[str, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    train: int = 2000
    test: int = 1000
    changes: tuple[str, ...] = ()
    seeds: int = 1
    jobs: int = 2
    out: Path | None = None
    keep_models: bool = False
    sizes: ListOpsSizes = field(default_factory=ListOpsSizes)


@dataclass(frozen=True)
class Cell:
    """One task at one length.

    Attributes:
        length: Tokens read of a document at most.
        why_not: Why it is not measured; "" where it is.
        runs: One for each seed.
        tokens: Of some test documents, before they are cut.
    """

    length: int
    why_not: str = ""
    runs: tuple[TrainingRun, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class LongTask:
    """One task's cells, or why there are none."""

    notes: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    why_not: str = ""


def run_long(plan: LongPlan, *, display: Display) -> Json:
    """Fine-tune and score every cell; what earlier calls have done is kept.

    Returns:
        JSON values: what `long.json` holds, and the files.

    Raises:
        InputError: The model, the data, a setting or the folder cannot be used.
        LostProcessError: A run failed; the result without it is written, as it is when the person stops it.
    """
    check_changes(plan.changes)
    settings = settings_of(["small", *SETTINGS, *plan.changes])
    model = SuiteModel.find(plan.model)
    limit = model.positions()
    if limit is not None and limit < plan.lengths[0]:
        raise InputError(
            f"{model.name}: has {limit} positions, fewer than the shortest of --lengths {plan.lengths[0]}; stretch "
            "them with `sortyard upcycle --max-positions`, or give shorter lengths"
        )
    files = find_files(plan.data)
    folder = suite_folder("long", model=model, out=plan.out)
    digests = {f"data of {name}": fingerprint(map(str, each)) for name, each in files.items() if name in plan.tasks}
    check_plan(folder, _same(plan, model=model) | digests)
    tokenizer = load_start_tokenizer(model.start)
    tasks = {
        name: _task(name, files.get(name, []), plan=plan, model=model, limit=limit, tokenizer=tokenizer, folder=folder)
        for name in plan.tasks
    }
    for name, task in tasks.items():
        display.say(f"task      {name}: {task.why_not or '; '.join(task.notes)}")
    order = [run for task in tasks.values() for cell in task.cells for run in cell.runs]
    try:
        run_all(order, jobs=plan.jobs, keep_models=plan.keep_models, display=display)
    except (LostProcessError, KeyboardInterrupt, SystemExit):
        if any(run.is_done for run in order):
            _write(plan, tasks, settings=settings, model=model, folder=folder)
        raise
    return _write(plan, tasks, settings=settings, model=model, folder=folder)


def _same(plan: LongPlan, *, model: SuiteModel) -> Json:
    """What must be alike for runs to stand in one table; shorter or longer inputs may be added."""
    return {
        "suite": "long",
        "model": model.digest,
        "changes": plan.changes,
        "number of training documents": plan.train,
        "number of test documents": plan.test,
        "list of lengths": plan.lengths,
        "size of ListOps": asdict(plan.sizes),
    }


def _task(
    name: str,
    files: Sequence[Path],
    *,
    plan: LongPlan,
    model: SuiteModel,
    limit: int | None,
    tokenizer: Any,
    folder: Path,
) -> LongTask:
    wanted = Wanted(plan.lengths, plan.train, plan.test)
    if name != "listops" and not files:
        return LongTask(why_not="not measured: no such file among the data")
    shared = None if name == "listops" else read_documents(name, files, wanted=wanted)
    cells, notes = [], list(shared.notes if shared is not None else ())
    for length in plan.lengths:
        if limit is not None and length > limit:
            cells.append(Cell(length, why_not=f"{limit} positions"))
            continue
        documents = shared
        if documents is None:
            documents = listops_documents(length, tokenizer=tokenizer, wanted=wanted, sizes=plan.sizes)
            notes += documents.notes
        cells.append(_cell(name, length, documents, plan=plan, model=model, tokenizer=tokenizer, folder=folder))
    return LongTask(tuple(notes), tuple(cells))


def _cell(
    name: str, length: int, documents: Documents, *, plan: LongPlan, model: SuiteModel, tokenizer: Any, folder: Path
) -> Cell:
    where = folder / name if name != "listops" else folder / name / f"{length}-documents"
    train, test = write_documents(documents, folder=where)
    options = TaskOptions(name="custom", data=str(train), dev=str(test), max_length=length)
    task = [f"finetune.task.{key}={json.dumps(getattr(options, key))}" for key in ("name", "data", "dev", "max_length")]
    words = ("small", *OF_EVERY_RUN, *SETTINGS, *plan.changes, *task, "--from", model.start)
    runs = tuple(
        TrainingRun(
            f"{name} at {length} seed {seed}",
            folder / name / f"{length}-seed-{seed}",
            words,
            seed,
            "custom",
            METRIC,
            weight=length,
        )
        for seed in range(plan.seeds)
    )
    texts = [text for text, _ in documents.test[:MOST_COUNTED]]
    return Cell(length, runs=runs, tokens=tuple(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]))


def _write(
    plan: LongPlan, tasks: Mapping[str, LongTask], *, settings: Json, model: SuiteModel, folder: Path
) -> Json:  # fmt: skip
    every = [run for task in tasks.values() for cell in task.cells for run in cell.runs]
    first = next((run.folder for run in every if run.is_done), None)
    sparsity = _Sparsity(model.start)
    found = {
        "suite": "long",
        "model": model.name,
        "model_digest": model.digest,
        "changes": list(plan.changes),
        "settings": settings | {"max_length": None},
        "seeds": list(range(plan.seeds)),
        "lengths": list(plan.lengths),
        **(origin(first) if first is not None else {}),
        "tasks": {name: _task_record(task, sparsity=sparsity) for name, task in tasks.items()},
    }
    files = [folder / "long.json", *([model.run / "eval" / "long.json"] if model.run is not None else [])]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        replace_bytes(file, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
    page = write_suite_page(found, folder=folder)
    return {**found, "files": [str(file) for file in (*files, page)]}


def _task_record(task: LongTask, *, sparsity: "_Sparsity") -> Json:
    if task.why_not:
        return {"measured": False, "why_not": task.why_not}
    cells = {str(cell.length): _cell_record(cell, sparsity=sparsity) for cell in task.cells}
    return {"measured": True, "notes": list(task.notes), "cells": cells}


def _cell_record(cell: Cell, *, sparsity: "_Sparsity") -> Json:
    scores: list[Score] = [score for run in cell.runs if (score := read_score(run)) is not None]
    if cell.why_not or not scores:
        return {"measured": False, "why_not": cell.why_not or "no run of it is done"}
    values = [score.score for score in scores]
    read = np.minimum(cell.tokens, cell.length)
    return {
        "measured": True,
        "score": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "seeds": [asdict(score) for score in scores],
        "steps": scores[0].steps,
        "seconds": statistics.median(score.seconds for score in scores),
        "mean_tokens": round(float(read.mean()), 1),
        "share_cut": round(float((np.array(cell.tokens) > cell.length).mean()), 4),
        "sparsity": sparsity.at(read),
    }


class _Sparsity:
    """The share of query-key pairs that a model leaves out at some lengths."""

    def __init__(self, start: str) -> None:
        from sortyard.model.attention.bucket import BucketCore

        model = start_shapes(start)
        self._core = next((module for module in model.modules() if isinstance(module, BucketCore)), None)
        self._is_own = getattr(model.config, "model_type", "") == "sortyard"

    def at(self, lengths: "np.typing.NDArray[np.int64]") -> float | None:
        """Over all pairs of sequences of these lengths; None for a model of another library."""
        import torch

        from sortyard.ops import expected_sparsity

        if self._core is None:
            return 0.0 if self._is_own else None
        spec = self._core.spec_on(torch.device("cpu"))
        pairs = lengths.astype(np.float64) ** 2
        left_out = np.array([expected_sparsity(spec, int(length), self._core.causal) for length in lengths])
        return round(float((pairs * left_out).sum() / pairs.sum()), 4)
