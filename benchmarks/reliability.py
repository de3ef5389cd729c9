"""What faults cost a training run, and what guarding against them costs its speed.

    python benchmarks/reliability.py                     # all parts, about 15 minutes on 2 cores
    python benchmarks/reliability.py --part overhead     # or any other of PARTS

Writes benchmarks/results/reliability.json, in which each part replaces what it measured before. The faults are those of
tests/faults, in larger numbers: SIGKILL at random moments (a quarter of them or more in the middle of a save) to runs
of one process (the library's loop and model), of four (a store of pieces, without a model), and of four that train a
model by tensor and data parallelism, which the launcher starts anew each time one of them is killed; damage to the
files of real checkpoints; disks that are full at some byte. The overhead is paired: in each round the same steps are
taken without saving, with a save before the training goes on, and with one behind it, in random order.
"""

# ruff: noqa: E402

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # for the processes that are started and killed
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tests.faults.corruption import corrupt
from tests.faults.elastic import kill_often
from tests.faults.full_disk import fill_disks
from tests.faults.killing import Case, Killer

from runs import write_result
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.runs.environment import describe_environment
from sortyard.runs.folder import RunFolder
from sortyard.training.checkpoint import CheckpointStore
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.session import Session
from sortyard.training.step import Stepper

SEED = 0
SAMPLES_PER_STEP = {1: 8, 4: 16}  # of the two targets in tests/faults
KINDS = ("bit", "block", "truncated")
VOCAB, LENGTH, ROWS = 4096, 128, 8
EVERY = 25  # steps between two saves
MODEL = ModelOptions(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    moe_intermediate_size=128,
    max_position_embeddings=LENGTH,
)


def kills(folder: Path, count: int, *, processes: int) -> dict[str, Any]:
    """SIGKILLs, shared out among both ways of saving."""
    cases = [Case(processes, asynchronous=asynchronous) for asynchronous in (False, True)]
    rows = []
    for number, case in enumerate(cases):
        killer = Killer(folder / str(case), case=case, draw=random.Random(SEED + processes + number))
        whole = killer.left_alone()
        tally = killer.kill_runs(whole, kills=-(-count // len(cases)))
        harm, per_step = tally.harm(), SAMPLES_PER_STEP[case.processes]
        rows.append(
            {
                "processes": case.processes,
                "asynchronous": case.asynchronous,
                "kills": tally.kills,
                "during_a_save": tally.during_a_save,
                "of_one_process_only": tally.of_one_process_only,
                "runs": tally.finished_runs,
                "samples_lost": harm.pop("steps_lost") * per_step,
                "samples_repeated": harm.pop("steps_repeated") * per_step,
                **harm,
            }
        )
        print(rows[-1], flush=True)
    return {"rows": rows, "total": _sum(rows)}


def kills_of_a_shared_model(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILLs of one of the processes that train a model together, of which half fall into a save."""
    tally = kill_often(folder, {"dp_shard": 2, "tp": 2}, kills=count, seed=SEED)
    harm = {name: count for name, count in tally.harm().items() if name != "checkpoints_damaged"}  # not looked for
    return {"processes": 4, "asynchronous": True, "kills": tally.kills, "during_a_save": tally.during_a_save, **harm}


def _sum(rows: list[dict[str, Any]]) -> dict[str, int]:
    names = [name for name in rows[0] if name not in ("processes", "asynchronous")]
    return {name: sum(row[name] for row in rows) for name in names}


def corruption(folder: Path, count: int) -> dict[str, Any]:
    """Damage to every file of two newest checkpoints in turn: noticed, named, and the one before loaded unharmed?"""
    found: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    draw = random.Random(SEED)
    for processes in (1, 4):
        killer = Killer(folder / str(processes), case=Case(processes, asynchronous=False), draw=draw)
        checkpoints = killer.left_alone() / "checkpoints"
        steps = CheckpointStore(checkpoints, keep=2, warn=print).steps()
        before = _values(checkpoints, steps[-2])
        paths = sorted((checkpoints / f"step-{steps[-1]:08d}").iterdir())
        for number in range(count // 2):
            path, kind = paths[number % len(paths)], draw.choice(KINDS)
            whole = path.read_bytes()
            damaged = corrupt(whole, kind=kind, draw=draw)
            if damaged == whole:
                found["unchanged"] += 1  # a block that was zero already
                continue
            path.write_bytes(damaged)
            told: list[str] = []
            newest = CheckpointStore(checkpoints, keep=2, warn=told.append).load_newest()
            path.write_bytes(whole)
            by_kind[kind] += 1
            found["corruptions"] += 1
            found["silent"] += newest is None or int(newest.state["step"]) != steps[-2]
            found["file_not_named"] += not (told and str(path) in told[0])
            if number % 10 == 0:
                found["fallbacks_compared"] += 1
                found["lost"] += _values(checkpoints, steps[-2]) != before
    return {**{name: found[name] for name in ("corruptions", *by_kind)}, **by_kind, **found}


def _values(checkpoints: Path, step: int) -> dict[str, bytes] | None:
    checkpoint = CheckpointStore(checkpoints, keep=2, warn=print).load(step)
    return checkpoint and {name: tensor.numpy().tobytes() for name, tensor in checkpoint.tensors("model").items()}


def full_disk(folder: Path, count: int) -> dict[str, Any]:
    """Saves onto a tmpfs with room for part of a checkpoint: of 1 and 4 writers, before training goes on and behind."""
    points = fill_disks(folder, points=count, seed=SEED)
    if points is None:
        return {"points": 0, "note": "no file system could be mounted"}
    return {
        "points": len(points),
        "failed_saves": sum(point["failed"] for point in points),
        "not_explained": sum(not point["explained"] for point in points),
        "earlier_checkpoints_lost": sum(not point["first_intact"] for point in points),
        "newest_unsound": sum(not point["newest_intact"] for point in points),
        "leftovers": sum(point["leftovers"] for point in points),
        "could_not_go_on": sum(not point["went_on"] for point in points),
    }


class Trainee:
    """A run in memory whose steps are timed."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        self.model = build_model(MODEL, head="masked_lm", vocab_size=VOCAB, tokenizer_ids={"pad_token_id": 0}, seed=0)
        self.model.train()
        optimizer = build_optimizer(self.model, OptimizerOptions())
        precision = Precision("fp32", device=torch.device("cpu"))
        self.run = RunFolder.create(folder / "run", recipe="", resolved="", environment={})
        stores = {
            way: CheckpointStore(self.run.path / way, keep=2, warn=print, in_background=way == "async")
            for way in ("sync", "async")
        }
        self.sessions = {
            way: Session(self.model, optimizer=optimizer, precision=precision, store=store)
            for way, store in stores.items()
        }
        for store in stores.values():
            store.prepare()
        self.stepper = Stepper(
            self.model,
            objective=MaskedLMObjective(),
            optimizer=optimizer,
            precision=precision,
            max_grad_norm=1.0,
            lr=lambda _: 1e-4,
            seed=SEED,
        )
        ids = torch.randint(5, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(SEED))
        labels = ids.masked_fill(torch.arange(LENGTH) % 7 > 0, -100)
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.step = 0

    def state_bytes(self) -> int:
        folder = self.run.path / "sync"
        newest = CheckpointStore(folder, keep=2, warn=print).steps()[-1]
        return sum(path.stat().st_size for path in (folder / f"step-{newest:08d}").iterdir())

    def block(self, way: str) -> dict[str, float]:
        """Times of some steps with a save before them.

        Returns:
            "seconds" by the clock; those in which the save held training up; processor seconds of the thread that
            trains, and of all threads.
        """
        started, of_thread, of_all = time.perf_counter(), time.thread_time(), time.process_time()
        held_up = 0.0
        if way != "none":
            session = self.sessions[way]
            session.state.step = self.step
            session.save(self.run)
            held_up = time.perf_counter() - started
        for _ in range(EVERY):
            self.stepper.take([self.batch], step=self.step)
            self.step += 1
        if way == "async":
            before_wait = time.perf_counter()
            self.sessions[way].store.wait()  # as the next save would
            held_up += time.perf_counter() - before_wait
        return {
            "seconds": time.perf_counter() - started,
            "held_up": held_up,
            "of_thread": time.thread_time() - of_thread,
            "of_all": time.process_time() - of_all,
        }


def overhead(folder: Path, count: int) -> dict[str, Any]:
    """Time of steps without saving and with both ways of saving."""
    trainee, draw = Trainee(folder), random.Random(SEED)
    ways = ("none", "sync", "async")
    for way in ways:
        trainee.block(way)  # to warm up
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    load = []
    for _ in range(count):
        load.append(os.getloadavg()[0])
        for way in draw.sample(ways, 3):
            found[way].append(trainee.block(way))
        print({way: round(blocks[-1]["seconds"], 3) for way, blocks in found.items()}, flush=True)

    def median(way: str, what: str) -> float:
        return statistics.median(block[what] for block in found[way])

    result: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in trainee.model.parameters()),
        "checkpoint_bytes": trainee.state_bytes(),
        "steps_between_saves": EVERY,
        "tokens_per_step": ROWS * LENGTH,
        "rounds": count,
        "median_load_average": statistics.median(load),
        "step_seconds": median("none", "seconds") / EVERY,
        "step_processor_seconds": median("none", "of_all") / EVERY,
    }
    for way in ways[1:]:
        pairs = list(zip(found[way], found["none"], strict=True))
        ratios = [one["seconds"] / other["seconds"] - 1 for one, other in pairs]
        result[way] = {
            "held_up_seconds": median(way, "held_up"),
            "held_up_share": median(way, "held_up") / median("none", "seconds"),
            "clock_overhead": statistics.median(ratios),
            "clock_overhead_quartiles": statistics.quantiles(ratios, n=4)[::2],
            "processor_overhead_of_training_thread": median(way, "of_thread") / median("none", "of_thread") - 1,
            "processor_overhead_of_all_threads": median(way, "of_all") / median("none", "of_all") - 1,
        }
    return result


PARTS = {
    "kills_of_one_process": (partial(kills, processes=1), 100),
    "kills_of_four_processes": (partial(kills, processes=4), 100),
    "kills_of_a_shared_model": (kills_of_a_shared_model, 40),
    "corruption": (corruption, 1000),
    "full_disk": (full_disk, 100),
    "overhead": (overhead, 15),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--count", type=int, default=0, help="kills, corruptions, points or rounds")
    words = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "reliability.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for name in words.part or PARTS:
        measure, count = PARTS[name]
        folder = Path(tempfile.mkdtemp(prefix="reliability-"))
        started = time.perf_counter()
        found = measure(folder, words.count or count)
        shutil.rmtree(folder)
        environment = describe_environment(seed=SEED, device="cpu", data_fingerprint="", command=sys.argv)
        for unneeded in ("command", "data_fingerprint", "seed"):
            environment.pop(unneeded)
        origin = {"date": datetime.now(UTC).date().isoformat(), "seed": SEED, "environment": environment}
        result[name] = {**found, "seconds": round(time.perf_counter() - started, 1), **origin}
        print(json.dumps({name: found}, indent=1), flush=True)
        write_result("reliability", result)


if __name__ == "__main__":
    main()
